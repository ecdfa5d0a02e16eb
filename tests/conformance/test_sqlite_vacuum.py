"""SQLite's own: free pages given back, in steps or in the window."""

from __future__ import annotations

import pytest

from backendops.contracts.metrics import TABLE_BYTES
from backendops.engine.pacing import TimedPace
from tests.celery_rows import celery_results, ensure_tables, fill_celery_table
from tests.conformance.sqlite_store import (
    DAY,
    LIVE,
    SmallPace,
    older_than,
    opened,
    path_of,
    raw,
    vacuum_plan,
)


def emptied(url: str) -> int:
    """Results come and go; the size of the file that they leave."""
    fill_celery_table(url, 3000, 1.0, payload=500)
    with opened(url) as backend:
        list(backend.expire(older_than(DAY), TimedPace()))
    return path_of(url).stat().st_size


def test_free_pages_are_given_back_in_steps_where_the_file_allows_it(sqlite_url: str) -> None:
    with raw(sqlite_url) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")
    before = emptied(sqlite_url)
    with opened(sqlite_url) as backend:
        steps = list(backend.vacuum(vacuum_plan(), SmallPace(100)))
    given_back = [step for step in steps if "gave free pages back" in step.what]
    assert len(given_back) > 2
    assert path_of(sqlite_url).stat().st_size < before / 5
    assert steps[-1].findings == ()
    assert any("analyzed" in step.what for step in steps)


def test_a_file_that_cannot_shrink_is_a_finding_and_is_rewritten_only_in_the_window(sqlite_url: str) -> None:
    before = emptied(sqlite_url)
    with opened(sqlite_url) as backend:
        steps = list(backend.vacuum(vacuum_plan(), SmallPace()))
        assert path_of(sqlite_url).stat().st_size >= before
        assert [finding.code for finding in steps[-1].findings] == ["sqlite.free-pages"]
        assert "VACUUM" not in backend.preview_vacuum(vacuum_plan()).statements
        assert any("VACUUM" in sql for sql in backend.preview_vacuum(vacuum_plan(full=True)).statements)
        steps = list(backend.vacuum(vacuum_plan(full=True), SmallPace()))
        # Statistics were refreshed a moment ago.
        assert not any("analyzed" in step.what for step in steps)
    assert path_of(sqlite_url).stat().st_size < before / 5
    sizes = {
        dict(reading.labels)["table"]: reading.value for reading in steps[-1].readings if reading.metric is TABLE_BYTES
    }
    assert set(sizes) == {LIVE, "celery_tasksetmeta"}
    assert sizes[LIVE] > 0


def test_a_rewrite_that_may_fill_the_disk_is_not_begun(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = emptied(sqlite_url)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 4096})())
    with opened(sqlite_url) as backend:
        steps = list(backend.vacuum(vacuum_plan(full=True), SmallPace()))
    assert [finding.code for finding in steps[-1].findings] == ["sqlite.no-room-to-rewrite"]
    assert path_of(sqlite_url).stat().st_size >= before


def test_the_write_ahead_log_is_cut(sqlite_url: str) -> None:
    ensure_tables(sqlite_url)
    with raw(sqlite_url) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        # From its first read on this connection keeps the log from being removed with the last other one.
        connection.execute(f"SELECT count(*) FROM {LIVE}").fetchone()
        celery_results(sqlite_url, 20)
        log = path_of(sqlite_url + "-wal")
        assert log.stat().st_size > 0
        with opened(sqlite_url) as backend:
            steps = list(backend.vacuum(vacuum_plan(), SmallPace()))
        assert log.stat().st_size == 0
    assert any(step.what == "checkpointed the write-ahead log" for step in steps)
