"""sentinel://: the master the sentinels name, before, during and after a failover."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from backendops.backends.redis import nodes
from backendops.contracts.errors import BackendUnreachable
from backendops.contracts.run import NoWatermarks
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from tests.celery_rows import celery_app
from tests.conformance.destinations import SOURCE, Files
from tests.conformance.redis_canary import broker_and_others
from tests.conformance.redis_store import FixedPace, opened
from tests.redis_fleets import MASTER, Guarded, guarded, until

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

JOB = Expire.model_validate({"keep": "30d"})
RESULTS = 3000


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded(tmp_path_factory.mktemp("sentinel")) as running:
        yield running


@pytest.fixture
def own_fleet(tmp_path: Path, fill_celery_keys: Callable[..., None]) -> Iterator[Guarded]:
    """A fleet of this test's own, with results without an expiry on every node."""
    with guarded(tmp_path, ["appendonly yes", "appendfsync no"]) as running:
        fill_celery_keys(running.nodes[0].url(), RESULTS, 1.0)
        replicated(running)
        yield running


def replicated(fleet: Guarded) -> None:
    assert fleet.client(fleet.master).wait(len(fleet.nodes) - 1, 5000) == len(fleet.nodes) - 1


def test_celery_and_backendops_mean_the_same_server(fleet: Guarded) -> None:
    app = celery_app(fleet.url, result_expires=None, result_backend_transport_options={"master_name": MASTER})
    backend: Any = app.backend
    try:
        backend.store_result("one", 1, "SUCCESS")
        with opened(fleet.url, master_name=MASTER) as connected:
            assert connected.client.exists("celery-task-meta-one")
            assert connected.standing().read_only_because == ""
            assert connected.display_url == fleet.url
    finally:
        backend.client.close()
        backend.client.connection_pool.disconnect()
        app.close()


@pytest.mark.parametrize("how", ["forced", "killed"])
def test_a_failover_in_the_middle_of_a_run_is_followed(own_fleet: Guarded, how: str) -> None:
    old = own_fleet.master
    client = own_fleet.client(old)
    results = set(client.keys("*"))
    connection = broker_and_others(old.url(), client)
    connection.close()
    foreign = {name: client.dump(name) for name in client.keys("*") if name not in results}
    assert len(foreign) >= 50
    replicated(own_fleet)
    with opened(own_fleet.url, master_name=MASTER) as backend, backend.lock() as held:
        assert held is not None
        steps = JOB.run(backend, datetime.now(UTC), FixedPace(500))
        given = next(steps).rows
        assert 0 < given < RESULTS
        replicated(own_fleet)
        if how == "forced":
            own_fleet.fail_over()
        else:
            old.kill()
        # The step that meets it waits for the new master and goes on there; what was given there already, stays.
        given += sum(step.rows for step in steps)
        assert held.still_held(), "the lock went over to the new master with everything else"

    assert given >= RESULTS
    new = own_fleet.client(own_fleet.master)
    assert own_fleet.master is not old
    assert {name: new.dump(name) for name in foreign} == foreign
    assert [key for key in results if new.ttl(key) == -1] == []


def test_an_archive_through_a_failover_misses_nothing_and_has_nothing_twice(own_fleet: Guarded, tmp_path: Path) -> None:
    archive, marks, old = Files(tmp_path, "jsonl.gz"), NoWatermarks(), own_fleet.master
    names = {name.decode().removeprefix("celery-task-meta-") for name in own_fleet.client(old).keys("*")}
    job = Archive.model_validate({"older_than": "1d"}).sent_to(archive.store, SOURCE)
    with opened(own_fleet.url, watermarks=marks, master_name=MASTER) as backend:
        steps = job.run(backend, datetime.now(UTC), FixedPace(500))
        # What is due was counted, and two of six batches were read.
        copied = sum(next(steps).rows for _ in range(3))
        old.kill()
        copied += sum(step.rows for step in steps)
    assert own_fleet.master is not old
    ids = [row["task_id"] for row in archive.rows()]
    assert len(ids) == len(set(ids)) == copied
    assert set(ids) == names, f"{len(names - set(ids))} results are in no archive, and the mark says they are"
    new = own_fleet.client(own_fleet.master)
    assert {row["task_id"]: bytes(row["meta"]) for row in archive.rows()} == {
        name: new.get(f"celery-task-meta-{name}") for name in names
    }


def test_a_run_that_nobody_takes_over_ends_and_the_next_one_completes(
    own_fleet: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "FOLLOW_FOR", 0.5)
    watermarks, master = NoWatermarks(), own_fleet.master
    with opened(own_fleet.url, watermarks=watermarks, master_name=MASTER) as backend:
        steps = JOB.run(backend, datetime.now(UTC), FixedPace(500))
        given = next(steps).rows
        for server in (*own_fleet.sentinels[1:], master):
            server.stop()
        with pytest.raises(BackendUnreachable):
            list(steps)
    monkeypatch.undo()  # on a busy machine the lone sentinel may doubt the master for another moment
    watching = own_fleet.client(own_fleet.sentinels[0])
    # Or it would say "ok" of what it has not missed yet, and doubt it when the next run has begun.
    until(lambda: watching.info("sentinel")["master0"]["status"] != "ok")
    master.start()
    until(lambda: watching.info("sentinel")["master0"]["status"] == "ok")
    with opened(own_fleet.url, watermarks=watermarks, master_name=MASTER) as backend:
        assert given + sum(step.rows for step in JOB.run(backend, datetime.now(UTC), FixedPace(500))) == RESULTS


def test_a_stop_ends_the_wait_for_a_new_master(own_fleet: Guarded) -> None:
    with opened(own_fleet.url, master_name=MASTER) as backend:
        steps = JOB.run(backend, datetime.now(UTC), FixedPace(500))
        next(steps)
        for server in (*own_fleet.sentinels[1:], own_fleet.master):
            server.kill()
        backend.interrupt()
        started = time.monotonic()
        with pytest.raises(BackendUnreachable):
            list(steps)
        assert time.monotonic() - started < 10


def test_the_memory_and_the_pool_are_the_masters(fleet: Guarded, fill_celery_keys: Callable[..., None]) -> None:
    fleet.client(fleet.master).flushall()
    fill_celery_keys(fleet.master.url(), RESULTS, 1.0)
    with opened(fleet.url, master_name=MASTER) as backend:
        assert backend.report_memory(timedelta(seconds=2)).result_keys["task"] == RESULTS
        assert backend.report_pool().notes == ()


def test_a_name_that_no_sentinel_knows_is_unreachable_and_says_so(fleet: Guarded) -> None:
    with pytest.raises(BackendUnreachable, match="No master found for 'other'"), opened(fleet.url, master_name="other"):
        pass


def test_redis_itself_is_asked_for_a_login_where_the_sentinels_need_one(fleet: Guarded) -> None:
    client = redis.Redis(port=fleet.sentinels[0].port)
    login = {"username": "watcher", "password": "hush"}
    one = f"sentinel://127.0.0.1:{fleet.sentinels[0].port}/0"
    client.execute_command("ACL SETUSER watcher on >hush +@all")
    client.execute_command("ACL SETUSER default off")
    try:
        with opened(one, master_name=MASTER, sentinel_kwargs=login) as backend:
            assert backend.client.ping()
        with pytest.raises(Exception, match=r"No master found") as raised, opened(one, master_name=MASTER):
            pass
        assert "hush" not in str(raised.value)
    finally:
        with redis.Redis(port=fleet.sentinels[0].port, **login) as watcher:
            watcher.execute_command("ACL SETUSER default on nopass ~* &* +@all")
        client.close()
