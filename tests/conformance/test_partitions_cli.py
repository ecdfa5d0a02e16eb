"""partitions list, reattach and drop; partition convert and undo: as commands, with exit codes and the ledger."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backendops.cli import cli
from backendops.cli.options import Options
from backendops.contracts.errors import BackendopsError
from tests.celery_rows import celery_results, fill_celery_table
from tests.conformance.postgres_store import connect, opened, sql

ARCHIVE = "celery_taskmeta_archive"


class Called:
    """A policy of one backend, and commands run with it."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.policy = directory / "policy.yaml"
        self.policy.write_text(
            f"version: 1\nstate: {directory / 'state'}\nbackends:\n  results: {{url: '{url}'}}\n"
            "jobs:\n  archive: {older_than: 1d}\n"
            "  partition: {keep: 60d, keep_live: 30d, allow_unarchived: true, quarantine: 3d}\n",
            encoding="utf-8",
        )

    def __call__(self, *words: str) -> Result:
        return CliRunner().invoke(cli, [*words, "--policy", str(self.policy)], obj=Options(), standalone_mode=False)

    def refused(self, *words: str) -> str:
        """The sentence of a command that ends with an error of ours."""
        error = self(*words).exception
        assert isinstance(error, BackendopsError | Exception)
        return str(error)


@pytest.fixture
def called(postgres18_url: str, tmp_path: Path) -> Called:
    """With 500 archived results, the oldest partitions of which are in quarantine."""
    called = Called(postgres18_url, tmp_path)
    fill_celery_table(postgres18_url, 500, due=1.0, older_than=timedelta(days=2), spread=timedelta(days=150))
    for job in ("archive", "partition"):
        assert called("run-once", job).return_value == 0
    return called


def listed(called: Called) -> dict[str, dict[str, object]]:
    shown = called("partitions", "list", "--json")
    assert shown.return_value == 0, shown.exception
    return {one["name"]: one for one in json.loads(shown.output)}


def oldest(called: Called) -> str:
    return min(name for name, one in listed(called).items() if one["state"] == "quarantined")


def test_list_shows_what_is_attached_and_what_waits_to_be_dropped(called: Called) -> None:
    found = listed(called)
    states = {str(one["state"]) for one in found.values()}
    assert states == {"attached", "quarantined"}
    one = found[oldest(called)]
    assert one["table"] == f'"public"."{ARCHIVE}"'
    assert str(one["bounds"]).startswith("FOR VALUES FROM")
    assert datetime.fromisoformat(str(one["drop_after"])) > datetime.now(UTC) + timedelta(days=2)
    table = called("partitions", "list", "--backend", "results").output
    assert oldest(called) in table
    assert "dropped after" in table


def test_a_partition_is_taken_back_and_is_in_the_archive_again(called: Called) -> None:
    rows = sql(called.url, f"SELECT count(*) FROM {ARCHIVE}")[0][0]
    name = oldest(called)
    sql(called.url, f"ALTER TABLE {ARCHIVE} ADD COLUMN newer text")
    done = called("partitions", "reattach", name)
    assert done.return_value == 0
    assert "is a partition of" in done.output
    assert listed(called)[name]["state"] == "attached"
    assert sql(called.url, f"SELECT count(*) > {rows} FROM {ARCHIVE}") == [(True,)]
    assert sql(called.url, f"SELECT obj_description('{name}'::regclass)") == [(None,)]
    history = json.loads(called("history", "partitions-reattach", "--json").output)
    assert [run["outcome"] for run in history] == ["completed"]
    # Not twice.
    again = called("partitions", "reattach", name)
    assert again.return_value == 5


def test_what_has_no_place_any_more_says_so(called: Called) -> None:
    name = oldest(called)
    sql(called.url, f"DROP TABLE {ARCHIVE} CASCADE")
    assert called("partitions", "reattach", name).return_value == 5


def test_the_rows_of_one_whose_place_is_taken_go_into_what_is_there(called: Called) -> None:
    name = oldest(called)
    rows = sql(called.url, f"SELECT (SELECT count(*) FROM {ARCHIVE}) + (SELECT count(*) FROM {name})")[0][0]
    assert sql(called.url, f"SELECT count(*) > 0 FROM {name}") == [(True,)]
    bounds = str(listed(called)[name]["bounds"])
    sql(called.url, f"CREATE TABLE instead PARTITION OF {ARCHIVE} {bounds}")
    called.policy.write_text(called.policy.read_text().replace("keep: 60d", "keep: 900d"))
    done = called("partitions", "reattach", name)
    assert (done.return_value, "the next run of the `partition` job moves its rows there" in done.output) == (0, True)
    assert listed(called)[name]["state"] == "emptying"
    assert called("run-once", "partition").return_value == 0
    assert name not in listed(called)
    assert sql(called.url, f"SELECT count(*) FROM {ARCHIVE}") == [(rows,)]
    assert sql(called.url, f"SELECT count(*) FROM {name}") == [(0,)]


def test_what_the_archive_got_meanwhile_is_given_to_a_partition_that_comes_back(called: Called) -> None:
    name = oldest(called)
    sql(
        called.url,
        f"ALTER TABLE {ARCHIVE} ADD COLUMN retried boolean NOT NULL DEFAULT false",
        f"ALTER TABLE {ARCHIVE} ADD COLUMN word text COLLATE \"C\" DEFAULT 'a:b'",
        f"CREATE INDEX ON {ARCHIVE} (status) WHERE status <> 'x:y'",
    )
    done = called("partitions", "reattach", name)
    assert (done.return_value, listed(called)[name]["state"]) == (0, "attached"), done.output
    assert "built an index of" in done.output
    assert sql(called.url, f"SELECT count(*) FROM {ARCHIVE} WHERE retried IS NULL OR word IS NULL") == [(0,)]
    # Nothing was built twice: every index of it is a part of one of the archive's.
    assert sql(
        called.url,
        "SELECT count(*) FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid "
        f"WHERE x.indrelid = '{name}'::regclass AND NOT c.relispartition",
    ) == [(0,)]


def test_drop_wants_a_name_a_yes_and_its_time(called: Called) -> None:
    name = oldest(called)
    assert "--yes" in called.refused("partitions", "drop", name)
    early = called("partitions", "drop", name, "--yes")
    assert early.return_value == 5
    assert "is in quarantine until" in early.output
    assert name in listed(called)
    assert called("partitions", "drop", "celery_taskmeta", "--yes", "--now").return_value == 5
    done = called("partitions", "drop", f"public.{name}", "--yes", "--now")
    assert done.return_value == 0
    assert name not in listed(called)
    other = oldest(called)
    # Its time is over.
    comment = sql(called.url, f"SELECT obj_description('{other}'::regclass)")[0][0]
    past = {**json.loads(comment), "drop_after": "2020-01-01T00:00:00+00:00"}
    with connect(called.url) as session, session.cursor() as cursor:
        cursor.execute(f"COMMENT ON TABLE {other} IS %s", [json.dumps(past)])
    assert called("partitions", "drop", other, "--yes").return_value == 0
    assert other not in listed(called)


def test_another_run_that_changes_the_backend_is_waited_for(called: Called) -> None:
    with opened(called.url) as backend, backend.lock() as lock:
        assert lock is not None
        assert called("partitions", "drop", oldest(called), "--yes", "--now").return_value == 75
        assert called("partition", "convert", "results").return_value == 75


@pytest.mark.parametrize("by", ["id", "date_done"])
def test_convert_and_undo_as_commands(postgres18_url: str, tmp_path: Path, by: str) -> None:
    called = Called(postgres18_url, tmp_path)
    ids = celery_results(postgres18_url, 10)
    planned = called("partition", "convert", "results", "--by", by, "--plan")
    assert planned.return_value == 0
    assert "-- ACCESS EXCLUSIVE (in the same transaction); held: about" in planned.output
    document = json.loads(called("partition", "convert", "results", "--by", by, "--plan", "--json").output)
    assert [one["same_transaction"] for one in document["statements"][:4]] == [False, True, True, False]
    done = called("partition", "convert", "results", "--by", by)
    assert done.return_value == 0, done.output
    assert "no row was copied; exclusive lock held for" in done.output
    assert "already" in called("partition", "convert", "results", "--plan").output
    assert "already" in called("partition", "convert", "results").output
    # The job of the policy goes on with it, and `list` shows it.
    assert called("run-once", "partition").return_value == 0
    states = {one["state"] for one in listed(called).values() if one["table"] == "public.celery_taskmeta"}
    assert states == ({"attached", "tail"} if by == "id" else {"attached", "default"})
    assert "every partition is there" in called("plan", "partition").output
    assert "would make" in called("partition", "undo", "results", "--plan").output
    assert called("partition", "undo", "results").return_value == 0
    assert called("partition", "undo", "results").return_value == 0
    assert sql(postgres18_url, "SELECT count(*) FROM ONLY celery_taskmeta") == [(len(ids),)]
    runs = json.loads(called("history", "--json").output)
    assert {run["job"] for run in runs} >= {"partition-convert", "partition-undo", "partition"}


def test_a_live_partition_goes_into_quarantine_and_comes_back(postgres18_url: str, tmp_path: Path) -> None:
    called = Called(postgres18_url, tmp_path)
    fill_celery_table(postgres18_url, 200, due=1.0, older_than=timedelta(days=40))
    for by in ("id", "date_done"):
        assert called("partition", "convert", "results", "--by", by).return_value == 0
        if by == "id":
            sql(postgres18_url, "SELECT setval('task_id_sequence', 900000)")
            celery_results(postgres18_url, 1)
            leaf = "celery_taskmeta_first"
        else:
            sql(
                postgres18_url,
                "CREATE TABLE old PARTITION OF celery_taskmeta FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')",
            )
            leaf = "old"
        assert called("run-once", "partition").return_value == 0
        assert listed(called)[leaf]["state"] == "quarantined"
        done = called("partitions", "reattach", leaf)
        assert done.return_value == 0, done.output
        assert listed(called)[leaf]["state"] == "attached"
        assert called("partition", "undo", "results").return_value == 0
        assert sql(postgres18_url, "SELECT count(*) FROM celery_taskmeta") == [(201,)]


def test_a_partition_of_a_time_that_came_to_the_default_one_says_how_it_comes_back(
    postgres18_url: str, tmp_path: Path
) -> None:
    called = Called(postgres18_url, tmp_path)
    celery_results(postgres18_url, 3)
    assert called("partition", "convert", "results", "--by", "date_done").return_value == 0
    sql(
        postgres18_url,
        "CREATE TABLE old PARTITION OF celery_taskmeta FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')",
        "INSERT INTO celery_taskmeta (id, task_id, date_done) VALUES (901, 'in', '2020-05-05')",
    )
    assert called("run-once", "partition").return_value == 0
    sql(postgres18_url, "INSERT INTO celery_taskmeta (id, task_id, date_done) VALUES (902, 'late', '2020-05-05')",
        "INSERT INTO celery_taskmeta (id, task_id, date_done) VALUES (903, 'stays', '2021-05-05')",
        "CREATE INDEX ON celery_taskmeta (status)")  # fmt: skip
    refused = called("partitions", "reattach", "old")
    assert refused.return_value == 5
    assert "has results of its time" in refused.output
    sql(postgres18_url, refused.output.split("move them first: ")[1].splitlines()[0].rstrip(";"))
    assert called("partitions", "reattach", "old").return_value == 0
    assert sql(postgres18_url, "SELECT task_id FROM old ORDER BY id") == [("in",), ("late",)]
    assert sql(postgres18_url, "SELECT count(*) FROM celery_taskmeta") == [(6,)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["partitions", "list", "--backend", "result"], "did you mean 'results'"),
        (["partition", "convert", "nobody"], "no backend 'nobody'"),
        (["partition", "convert", "results", "--every", "day"], "--by date_done"),
        (["partition", "convert", "results", "--by", "date_done", "--rows-per-partition", "5000"], "--by id"),
        (["partition", "convert", "results", "--json"], "--plan"),
        (["partition", "convert", "results", "--rows-per-partition", "5"], "5 is not in the range"),
    ],
)
def test_a_slip_is_answered_before_anything_is_opened(tmp_path: Path, words: list[str], said: str) -> None:
    called = Called("db+postgresql://nobody:x@127.0.0.1:1/none", tmp_path)
    assert said in called.refused(*words)


def test_a_backend_without_partitions_says_so(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\nbackends:\n  cache: {url: redis://localhost:1/0}\njobs:\n  expire: {keep: 1d}\n", encoding="utf-8"
    )
    for words in (["partition", "convert", "cache"], ["partitions", "list", "--backend", "cache"]):
        done = CliRunner().invoke(cli, [*words, "--policy", str(policy)], obj=Options(), standalone_mode=False)
        assert "which has no" in str(done.exception)
