"""Archiving from Redis: what finished is kept elsewhere before it expires, each once, and Redis stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
import redis

from backendops.backends.redis import handover
from backendops.backends.redis.errors import acl_line
from backendops.contracts.archive import CanHandOver, Selection
from backendops.contracts.readings import Finding
from backendops.contracts.retention import Retention, Rule
from backendops.contracts.run import Limits, NoWatermarks, Step, Watermarks
from backendops.jobs.archive import Archive
from backendops.jobs.moving import move
from backendops.jobs.restore import Restore
from tests.celery_rows import back_date
from tests.conformance.destinations import SOURCE, Destination, Files, Tables
from tests.conformance.redis_canary import canary
from tests.conformance.redis_store import FixedPace, client_of, everything, opened
from tests.servers import Postgres

# Celery 5.7 calls SETEX in the way that redis-py 8 would rather not see.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

CAPABILITY = CanHandOver
HOUR = timedelta(hours=1)
GROUPS = "celery_tasksetmeta"
Store = Callable[..., list[str]]


@pytest.fixture(params=["jsonl.gz", "tables"])
def destination(request: pytest.FixtureRequest, tmp_path: Path, postgres18_server: Postgres) -> Iterator[Destination]:
    """Files, then another database."""
    if request.param != "tables":
        yield Files(tmp_path, request.param)
        return
    name = postgres18_server.create_database()
    yield Tables(postgres18_server.celery_url(name))
    postgres18_server.drop_database(name)


@pytest.fixture
def files(tmp_path: Path) -> Destination:
    return Files(tmp_path, "jsonl.gz")


@pytest.fixture
def client(valkey_url: str) -> Iterator[redis.Redis]:
    with client_of(valkey_url) as connected:
        yield connected


def older_than(age: timedelta = HOUR, *rules: Rule) -> Retention:
    return Retention(datetime.now(UTC) - age, rules)


def run(
    url: str,
    destination: Destination,
    due: Retention | None = None,
    *,
    marks: Watermarks | None = None,
    stop_after: int | None = None,
    size: int = 1000,
) -> list[Step]:
    """One run, or its first steps."""
    with opened(url, watermarks=marks) as backend, destination.opened() as archive:
        steps = move(backend, archive, due or older_than(), FixedPace(size))
        done = [step for step, _ in zip(steps, range(stop_after or 10**6), strict=False)]
        steps.close()
    return done


def copied(steps: list[Step]) -> int:
    return sum(step.rows for step in steps)


def found(steps: list[Step]) -> dict[str, Finding]:
    return {finding.code: finding for finding in steps[-1].findings}


def archived(destination: Destination, table: str = "celery_taskmeta") -> dict[str, bytes]:
    """What is archived by id; each once."""
    key = "taskset_id" if table == GROUPS else "task_id"
    rows = destination.rows(table)
    by_id = {row[key]: bytes(row["meta"]) for row in rows}
    assert len(by_id) == len(rows), "the same result twice in the archive"
    return by_id


def test_what_finished_long_ago_is_copied_byte_for_byte_and_nothing_is_changed(
    redis_url: str, destination: Destination, celery_results: Store
) -> None:
    with client_of(redis_url) as client:
        every = celery_results(redis_url, 20, groups=2, started=3, result_expires=86400)
        # Of ten, the last is a retry, which has not finished.
        young, due = every[:5], sorted(every[number] for number in range(5, 26) if number % 10 != 9 or number > 19)
        back_date(redis_url, due, 3 * HOUR)
        with canary(redis_url, client):
            before = everything(client)
            steps = run(redis_url, destination)
            assert everything(client) == before
            kept = archived(destination)
            assert sorted(kept) == due
            assert young[0] not in kept
            for task_id in due:
                assert kept[task_id] == client.get(f"celery-task-meta-{task_id}")
            groups = archived(destination, GROUPS)
            names = cast(list[bytes], client.keys("celery-taskset-meta-*-*"))
            assert groups == {name.decode().removeprefix("celery-taskset-meta-"): client.get(name) for name in names}
            assert len(groups) == 2
            assert copied(steps) == len(due) + 2
            assert copied(run(redis_url, destination)) == 0
            assert sorted(archived(destination)) == due
        (row,) = [row for row in destination.rows() if row["task_id"] == due[0]]
        meta = json.loads(kept[due[0]])
        assert (row["status"], row["name"], row["queue"]) == (meta["status"], meta["name"], meta["queue"])
        assert (row["worker"], row["retries"]) == ("worker@tests", meta["retries"])
        assert row["date_done"].replace(tzinfo=UTC) == datetime.fromisoformat(meta["date_done"])


def test_every_stop_leaves_each_result_in_the_archive_once(
    valkey_url: str, destination: Destination, fill_celery_keys: Callable[..., None], client: redis.Redis
) -> None:
    fill_celery_keys(valkey_url, 150, 0)
    names = {name.decode().removeprefix("celery-task-meta-") for name in cast(list[bytes], client.keys("*"))}
    stop_after, before = 2, everything(client)
    while True:
        steps = run(valkey_url, destination, stop_after=stop_after, size=70)
        kept = archived(destination)
        assert set(kept) <= names
        if len(steps) < stop_after:
            break
        stop_after += 3
        assert stop_after < 40
    assert set(kept) == names
    assert copied(run(valkey_url, destination)) == 0
    assert everything(client) == before
    with destination.opened() as archive:
        assert list(archive.unfinished()) == []
        assert [one.wrong for one in archive.check() if one.wrong] == []


def test_what_is_not_json_is_counted_by_its_form_and_left(
    valkey_url: str, files: Destination, celery_results: Store, client: redis.Redis
) -> None:
    pickled = celery_results(valkey_url, 3, groups=1, result_serializer="pickle", accept_content=["pickle"])
    for number in range(2):
        client.set(f"celery-task-meta-msgpack{number}", b"\x83\xa6status\xa7SUCCESS\xa6result\x01\xa9date_done\xc0")
    squeezed = celery_results(valkey_url, 4, result_compression="gzip")
    client.set("celery-task-meta-other", "no result")
    client.set("celery-task-meta-\x00", '{"status": "SUCCESS", "result": 1, "date_done": "2020-01-01T00:00:00"}')

    # Nothing back-dated could be read: what finished just now is due for once.
    due = Retention(datetime.now(UTC) + HOUR)
    steps = run(valkey_url, files, due)

    assert len(pickled) == 6
    assert sorted(archived(files)) == sorted(squeezed)
    sentence = found(steps)["archive.not-json"].sentence
    assert sentence.startswith("11 results"), sentence
    for words in ("pickle 7", "msgpack 2", "other 2"):
        assert words in sentence
    assert json.loads(client.execute_command("GET", "celery-task-meta-\x00"))["result"] == 1


def test_rules_decide_and_an_unfinished_group_waits_for_its_last_task(
    valkey_url: str, files: Destination, celery_results: Store, client: redis.Redis
) -> None:
    ids = celery_results(valkey_url, 10, groups=1)
    members = ids[10:]
    back_date(valkey_url, ids, 3 * HOUR)
    name = f"celery-task-meta-{members[0]}"
    whole = cast(bytes, client.get(name))
    client.set(name, json.dumps({**json.loads(whole), "status": "STARTED", "date_done": None}))

    steps = run(valkey_url, files, older_than(HOUR, Rule(None, state="FAILURE"), Rule(None, task="mail.send")))
    statuses = {row["status"] for row in files.rows()}
    assert statuses == {"SUCCESS", "RETRY"}, "back_date has made the retry look finished"
    assert {row["name"] for row in files.rows()} == {"reports.build"}
    assert archived(files, GROUPS) == {}

    client.set(name, whole)
    steps = run(valkey_url, files)
    assert len(archived(files, GROUPS)) == 1
    for each in members:
        client.delete(f"celery-task-meta-{each}")
    steps = run(valkey_url, files)
    assert "archive.group-without-members" in found(steps)


def test_results_that_expire_before_they_are_due_are_told(
    valkey_url: str, files: Destination, celery_results: Store, client: redis.Redis
) -> None:
    celery_results(valkey_url, 5, result_expires=1800)
    steady = celery_results(valkey_url, 3, result_expires=2 * 3600)
    assert len(steady) == 3
    marks = NoWatermarks()

    steps = run(valkey_url, files, marks=marks)
    assert [each.code for step in steps for each in step.findings] == ["archive.expires-first"], "once"
    told = found(steps)["archive.expires-first"]
    assert told.severity.value == "critical"
    # Of ten, the fourth is a failure, which finished too.
    assert told.sentence.startswith("5 finished results")
    assert "29m" in told.sentence
    assert "archive.expires-before-next-run" not in found(steps)

    # The last run was three hours ago: the next one, three hours from now, will not meet them.
    (key,) = marks._values
    rules, latest, ended, compared = json.loads(cast(str, marks.recall(key)))
    earlier = (datetime.fromisoformat(ended) - 3 * HOUR).isoformat()
    marks.remember(key, json.dumps([rules, latest, earlier, compared]))
    told = found(run(valkey_url, files, marks=marks))["archive.expires-before-next-run"]
    assert told.sentence.startswith("3 finished results")


def test_what_the_last_run_left_in_the_archive_is_compared_once_an_hour(
    valkey_url: str, files: Files, celery_results: Store, client: redis.Redis
) -> None:
    ids = celery_results(valkey_url, 7)
    back_date(valkey_url, ids, 30 * HOUR)
    marks = NoWatermarks()
    due = len(archived_after(valkey_url, files, marks))
    assert due == 7
    late = celery_results(valkey_url, 2)
    back_date(valkey_url, late, 2 * HOUR)

    with opened(valkey_url, watermarks=marks) as backend, files.opened() as archive:
        backend.begin_hand_over(archive.identity)
        read = [row.values[0] for batch in backend.read_due(older_than(), FixedPace()) for row in batch.rows]
    assert sorted(cast(list[str], read)) == sorted(late)
    assert len(archived_after(valkey_url, files, marks)) == 9

    # Another destination, other rules, and an hour later: everything is looked at again.
    with opened(valkey_url, watermarks=marks) as backend:
        other_rules = older_than(HOUR, Rule(None, state="OTHER"))
        for where, retention in (("elsewhere", older_than()), (files.store.identity, other_rules)):
            backend.begin_hand_over(where)
            reading = backend.archiving.reading(backend.keys, backend.nodes, retention)
            assert sum(len(batch.rows) for batch in reading.batches("task", FixedPace())) == 9
    (key,) = marks._values
    rules, latest, ended, compared = json.loads(cast(str, marks.recall(key)))
    earlier = (datetime.fromisoformat(compared) - HOUR).isoformat()
    marks.remember(key, json.dumps([rules, latest, ended, earlier]))
    with opened(valkey_url, watermarks=marks) as backend, files.opened() as archive:
        backend.begin_hand_over(archive.identity)
        assert backend.find_due(older_than()).rows == 9


def archived_after(url: str, files: Destination, marks: Watermarks) -> dict[str, bytes]:
    run(url, files, marks=marks)
    return archived(files)


def test_a_task_that_ran_again_is_archived_again(
    valkey_url: str, files: Destination, celery_results: Store, client: redis.Redis
) -> None:
    (task_id,) = celery_results(valkey_url, 1)
    back_date(valkey_url, [task_id], 3 * HOUR)
    run(valkey_url, files)
    back_date(valkey_url, [task_id], 2 * HOUR)
    assert copied(run(valkey_url, files)) == 1
    assert len(files.rows()) == 2


def test_long_results_are_read_in_pieces(
    valkey_url: str, files: Destination, fill_celery_keys: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_celery_keys(valkey_url, 12, 0, payload=20_000)
    monkeypatch.setattr(handover, "READ_BYTES", 50_000)
    with opened(valkey_url) as backend:
        sizes = [len(batch.rows) for batch in backend.read_due(older_than(), FixedPace())]
    assert sum(sizes) == 12
    assert max(sizes) == 2
    monkeypatch.setattr(handover, "MOST_READ", 10_000)
    assert found(run(valkey_url, files))["archive.too-large"].sentence.startswith("12 ")


def test_counting_ends_in_time_and_says_that_it_is_a_guess(
    valkey_url: str, fill_celery_keys: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_celery_keys(valkey_url, 5000, 0)
    monkeypatch.setattr("backendops.backends.redis.archive.COUNT_TIME", 0)
    with opened(valkey_url, limits=Limits(read_only=True)) as backend:
        preview = backend.preview_hand_over(older_than(), "files")
    assert preview.summary.startswith("about ")
    assert 3000 < preview.rows < 7000


def test_restore_puts_a_result_back_with_an_expiry_and_the_archive_keeps_it(
    valkey_url: str, destination: Destination, celery_results: Store, client: redis.Redis
) -> None:
    ids = celery_results(valkey_url, 3, groups=1)
    back_date(valkey_url, ids, 3 * HOUR)
    run(valkey_url, destination)
    before = {name: client.get(name) for name in cast(list[bytes], client.keys("*"))}
    client.delete(f"celery-task-meta-{ids[0]}", *cast(list[bytes], client.keys("celery-taskset-meta-*")))

    job = Archive(older_than="1h").sent_to(destination.store, SOURCE)  # type: ignore[arg-type]  # as a policy says it
    restore = Restore.of(job, Selection())
    with opened(valkey_url, result_expires="2h") as backend:
        for _ in restore.run(backend, datetime.now(UTC), FixedPace()):
            pass

    assert {name: client.get(name) for name in cast(list[bytes], client.keys("*"))} == before
    assert len(restore.restored) == 2
    assert len(restore.live_again) == len(ids) - 1
    assert 7000 < cast(int, client.ttl(f"celery-task-meta-{ids[0]}")) <= 7200
    assert sorted(archived(destination)) == sorted(ids)
    assert copied(run(valkey_url, destination)) == 0


def test_the_prefix_of_the_application_is_kept_to(
    valkey_url: str, files: Destination, celery_results: Store, client: redis.Redis
) -> None:
    theirs = celery_results(valkey_url, 2)
    mine = celery_results(valkey_url, 2, result_backend_transport_options={"global_keyprefix": "a[*]b"})
    for task_id in mine:
        name = f"a[*]b_celery-task-meta-{task_id}"
        meta = json.loads(cast(bytes, client.get(name)))
        client.set(name, json.dumps({**meta, "date_done": "2026-01-01T00:00:00"}))
    back_date(valkey_url, theirs, 3 * HOUR)
    with opened(valkey_url, global_keyprefix="a[*]b") as backend, files.opened() as archive:
        for _ in move(backend, archive, older_than(), FixedPace()):
            pass
    assert sorted(archived(files)) == sorted(mine)


def test_a_user_may_have_only_the_rights_that_backendops_names(
    valkey_url: str, files: Destination, celery_results: Store, client: redis.Redis
) -> None:
    ids = celery_results(valkey_url, 3)
    back_date(valkey_url, ids, 3 * HOUR)
    client.execute_command(*acl_line("archivist", "").split())
    client.execute_command("ACL", "SETUSER", "archivist", "on", ">x")
    try:
        assert copied(run(valkey_url.replace("://", "://archivist:x@"), files)) == 3
    finally:
        client.acl_deluser("archivist")
