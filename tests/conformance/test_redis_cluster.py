"""A Redis Cluster: refused where the policy does not name it as one, else gone through master by master."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError
from redis.cluster import RedisCluster
from redis.crc import key_slot

from backendops.backends.redis import RedisBackend
from backendops.contracts.archive import Selection
from backendops.contracts.errors import BackendRefused
from backendops.contracts.run import Limits, NoWatermarks
from backendops.jobs.archive import Archive
from backendops.jobs.expire import Expire
from backendops.jobs.redis_memory import RedisMemory
from backendops.jobs.restore import Restore
from tests.conformance.destinations import SOURCE, Files
from tests.conformance.redis_store import FixedPace, about, opened
from tests.redis_fleets import Clustered, clustered, until

JOB = Expire.model_validate({"keep": "30d", "redis": {"chord_keep": "1d"}})
RESULTS = 600


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clustered]:
    with clustered(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def client(fleet: Clustered) -> Iterator[RedisCluster]:
    """A client of the whole, with results of ten days ago and fifty other keys on every master."""
    node = fleet.nodes[0]
    cluster = RedisCluster(host=node.host, port=node.port)
    for primary in cluster.get_primaries():
        cluster.flushall(target_nodes=primary)
    done = (datetime.now(UTC) - timedelta(days=10)).isoformat()
    for number in range(RESULTS):
        task_id = f"{number:08d}-0000-4000-8000-000000000000"
        nested = ', "kwargs": {"date_done": "2001-01-01"}' if number % 10 == 0 else ""
        cluster.set(
            f"celery-task-meta-{task_id}",
            f'{{"status": "SUCCESS", "result": {number}, "traceback": null, "children": [], "date_done": "{done}"'
            f'{nested}, "task_id": "{task_id}"}}',
        )
    for number in range(50):
        cluster.set(f"cache:{number}", "x")
        cluster.rpush(f"queue-{number}", "x")
    yield cluster
    cluster.close()


def foreign(cluster: RedisCluster) -> dict[bytes, bytes]:
    names = [f"{kind}{number}".encode() for kind in ("cache:", "queue-") for number in range(50)]
    return {name: cluster.dump(name) for name in names}


def ttls(cluster: RedisCluster) -> list[int]:
    return [cluster.ttl(f"celery-task-meta-{number:08d}-0000-4000-8000-000000000000") for number in range(RESULTS)]


def test_a_node_that_the_policy_does_not_call_one_is_refused_and_told_why(fleet: Clustered) -> None:
    with pytest.raises(BackendRefused, match="is a node of a Redis Cluster") as refused, opened(fleet.url):
        pass
    assert "Celery cannot keep results in a Redis Cluster" in refused.value.hint
    assert "`cluster: true`" in refused.value.hint


def test_a_server_by_itself_is_no_cluster(valkey_url: str) -> None:
    with pytest.raises(BackendRefused, match="is not a node of a cluster"), opened(valkey_url, cluster=True):
        pass


@pytest.mark.parametrize("url", ["redis://host:6379/3", "sentinel://host:26379/0", "redis+socket:///run/redis.sock"])
def test_what_a_cluster_cannot_be_is_a_problem_of_the_policy(url: str) -> None:
    with pytest.raises(ValidationError, match="cluster"):
        RedisBackend(url=url, cluster=True, master_name="m")


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_every_master_is_swept_and_nothing_else_is_touched(
    fleet: Clustered, client: RedisCluster, scripts: bool
) -> None:
    url = fleet.url if scripts else without_scripts(fleet)
    before = foreign(client)
    with opened(url, limits=Limits(read_only=True), cluster=True) as backend:
        assert JOB.preview(backend, datetime.now(UTC)).rows == RESULTS
    with opened(url, cluster=True) as backend, backend.lock() as held:
        assert held is not None
        assert held.still_held()
        slot = client.keyslot(backend.lock_name)
        assert slot == key_slot(backend.lock_name.encode())
        assert client.exists(backend.lock_name) == 1
        with opened(url, cluster=True) as other, other.lock() as second:
            assert second is None
        assert sum(step.rows for step in JOB.run(backend, datetime.now(UTC), FixedPace(100))) == RESULTS

    assert all(about(ttl, timedelta(days=20)) for ttl in ttls(client))
    assert foreign(client) == before
    assert client.exists(backend.lock_name) == 0


def without_scripts(fleet: Clustered) -> str:
    for node in fleet.nodes:
        fleet.client(node).execute_command("ACL SETUSER plain reset on >secret ~* &* +@all -@scripting")
    return fleet.url.replace("redis://", "redis://plain:secret@")


def test_a_stopped_sweep_goes_on_where_it_was(fleet: Clustered, client: RedisCluster) -> None:
    watermarks, rows = NoWatermarks(), 0
    for _ in range(2):
        with opened(fleet.url, cluster=True, watermarks=watermarks) as backend:
            steps = JOB.run(backend, datetime.now(UTC), FixedPace(100))
            rows += next(steps).rows
            steps.close()
    assert 0 < rows < RESULTS
    with opened(fleet.url, cluster=True, watermarks=watermarks) as backend:
        rows += sum(step.rows for step in JOB.run(backend, datetime.now(UTC), FixedPace(1000)))
    assert rows == RESULTS


def test_every_master_has_its_turn_when_each_run_is_stopped_after_one(fleet: Clustered, client: RedisCluster) -> None:
    watermarks, rows = NoWatermarks(), []
    for _ in range(3):
        with opened(fleet.url, cluster=True, watermarks=watermarks) as backend:
            steps = JOB.run(backend, datetime.now(UTC), FixedPace(10_000))
            rows.append(next(steps).rows)
            steps.close()
    assert sum(rows) == RESULTS, rows


def test_a_survey_that_runs_out_of_time_between_two_masters_is_not_complete(
    fleet: Clustered, client: RedisCluster
) -> None:
    watermarks, found = NoWatermarks(), []
    # One master in each; on a busy machine a call may end before it has all of one.
    while len(found) < 9 and (not found or found[-1].part < 1):
        with opened(fleet.url, cluster=True, watermarks=watermarks) as backend:
            found.append(backend.survey_keys(timedelta(microseconds=1)))
    assert len(found) >= 3
    assert found[-1].part == 1
    assert found[-1].kinds["task"].keys == RESULTS


def test_the_survey_counts_the_keys_of_all_masters(fleet: Clustered, client: RedisCluster) -> None:
    with opened(fleet.url, cluster=True) as backend:
        found = backend.survey_keys()
        memory = backend.report_memory(timedelta(seconds=2))
        assert backend.report_pool().connect_seconds > 0
    assert found.part == 1
    assert {kind: figures.keys for kind, figures in found.kinds.items()} == {
        "task": RESULTS, "group": 0, "chord": 0, "rpc": 0, "broker": 0, "foreign": 100,
    }  # fmt: skip
    assert found.kinds["task"].without_ttl == RESULTS
    assert found.kinds["task"].size_error == 0, "a small store is weighed in full"
    assert memory.result_keys["task"] == RESULTS


def test_the_memory_of_every_master_is_looked_at_and_a_finding_names_its_node(
    fleet: Clustered, client: RedisCluster
) -> None:
    masters = {f"{node.host}:{node.port}": fleet.client(node) for node in fleet.masters()}
    full = next(name for name in masters if not fleet.url.startswith(f"redis://{name}"))
    masters[full].config_set("maxmemory", int(masters[full].info("memory")["used_memory"] / 0.9))
    try:
        with opened(fleet.url, cluster=True) as backend:
            report = backend.report_memory(timedelta(seconds=2))
        found = {finding.code: finding for finding in RedisMemory().findings(report, datetime.now(UTC))}
    finally:
        masters[full].config_set("maxmemory", 0)
    assert {node.node for node in report.nodes} == set(masters)
    assert report.used == sum(node.used for node in report.nodes) > 1.5 * max(node.used for node in report.nodes)
    assert report.keys == RESULTS + 100
    assert report.limit == 0, "two have none"
    assert report.server is not None
    assert len(report.server.replicas) == 3
    near = found["redis.memory-near-limit"]
    assert near.sentence.startswith(f"{full}: ")
    assert " are used (9" in near.sentence
    others = sorted(set(masters) - {full})
    assert found["redis.no-memory-limit"].sentence.partition(": ")[0] in others
    assert sum(name in found["redis.no-memory-limit"].sentence for name in others) == 2
    assert found["redis.results-without-ttl"].sentence.startswith(f"{RESULTS} result keys"), "of the whole, once"


def test_results_of_all_masters_are_archived_and_put_back(
    fleet: Clustered, client: RedisCluster, tmp_path: Path
) -> None:
    archive = Files(tmp_path, "jsonl.gz")
    ids = [f"{number:08d}-0000-4000-8000-000000000000" for number in range(20)]
    members = ", ".join(f'[["{task_id}", null], null]' for task_id in ids)
    client.set("celery-taskset-meta-group", f'{{"result": [["group", null], [{members}]]}}')
    job = Archive.model_validate({"older_than": "1d"}).sent_to(archive.store, SOURCE)
    with opened(fleet.url, cluster=True) as backend:
        assert sum(step.rows for step in job.run(backend, datetime.now(UTC), FixedPace(100))) == RESULTS + 1
    lost = [f"celery-task-meta-{task_id}" for task_id in ids] + ["celery-taskset-meta-group"]
    before = [client.get(name) for name in lost]
    for name in lost:
        client.delete(name)
    restore = Restore.of(job, Selection())
    with opened(fleet.url, cluster=True) as backend:
        list(restore.run(backend, datetime.now(UTC), FixedPace(100)))
    assert sorted(restore.restored) == [*ids, "group"]
    assert [client.get(name) for name in lost] == before


def test_a_slot_that_is_moving_is_left_for_the_next_sweep(fleet: Clustered, client: RedisCluster) -> None:
    key = "celery-task-meta-00000001-0000-4000-8000-000000000000"
    slot = client.keyslot(key)
    owner = client.get_node_from_key(key)
    source = next(node for node in fleet.masters() if node.port == owner.port)
    target = next(node for node in fleet.masters() if node is not source)
    ids = {node.port: fleet.client(node).execute_command("CLUSTER", "MYID").decode() for node in (source, target)}
    fleet.client(target).execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
    fleet.client(source).execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
    fleet.client(source).execute_command("MIGRATE", target.host, target.port, key, 0, 5000)
    try:
        with opened(fleet.url, cluster=True) as backend:
            rows = sum(step.rows for step in JOB.run(backend, datetime.now(UTC), FixedPace(100)))
            assert backend.survey_keys().kinds["task"].keys == RESULTS
        assert rows == RESULTS - 1
    finally:
        for node in (target, source, *fleet.masters()):
            fleet.client(node).execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
    with opened(fleet.url, cluster=True) as backend:
        assert sum(step.rows for step in JOB.run(backend, datetime.now(UTC), FixedPace(100))) == 1


def test_a_master_that_dies_in_the_middle_is_followed(tmp_path: Path, fleet: Clustered, client: RedisCluster) -> None:
    before = foreign(client)
    for node in fleet.masters():
        assert fleet.client(node).wait(1, 5000) == 1
    with opened(fleet.nodes[0].url(), cluster=True) as backend:
        steps = JOB.run(backend, datetime.now(UTC), FixedPace(100))
        next(steps)
        gone = next(node for node in fleet.masters() if node.port != fleet.nodes[0].port)
        gone.kill()
        list(steps)
    try:
        until(fleet.is_whole)
        client.nodes_manager.initialize()
        assert all(about(ttl, timedelta(days=20)) for ttl in ttls(client))
        assert foreign(client) == before
    finally:
        gone.start()
        until(fleet.is_whole)
