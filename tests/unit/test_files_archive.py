"""Archives in files: whole or not at all, read back, and every kind of damage found by verify."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self
from zoneinfo import ZoneInfo

import pytest

from backendops.backends.files import FileStore, parts
from backendops.backends.files.manifest import as_lines, numbers_of
from backendops.contracts.archive import Batch, Column, Row, Selection, Shape, fingerprint
from backendops.contracts.capabilities import Every
from backendops.contracts.errors import BackendError, BackendLocked, BackendRefused
from backendops.contracts.run import Limits
from tests.conformance.stores import FixedPace

SHAPE = Shape(
    "task",
    "celery_taskmeta",
    (
        Column("id", "integer", "integer"),
        Column("task_id", "text", "character varying(155)"),
        Column("result", "bytes", "bytea"),
        Column("date_done", "timestamp", "timestamp without time zone"),
        Column("extra", "other", "numeric"),
    ),
)
FORMATS = ("jsonl.gz", "parquet")
START = datetime(2026, 10, 30, 12, tzinfo=UTC)
PACE = FixedPace(1000)


def row(number: int, done_at: datetime | None = None, **values: object) -> Row:
    done = done_at or START + timedelta(hours=number)
    given = {
        "id": number,
        "task_id": f"task-{number}",
        "result": bytes(range(256)) + str(number).encode(),
        "date_done": done.replace(tzinfo=None),
        "extra": None,
    }
    return Row(tuple((given | values)[name] for name in SHAPE.names), done)  # type: ignore[misc]


def rows(count: int) -> Batch:
    return Batch(SHAPE, tuple(row(number) for number in range(count)))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "archive"
    path.mkdir()
    return path


def opened(
    directory: Path, form: str = "jsonl.gz", every: Every = "month", source: str = "results", **limits: bool
) -> AbstractContextManager[FileStore]:
    return FileStore(directory, form, every, ZoneInfo("UTC")).open(source, Limits(**limits))  # type: ignore[arg-type]


def keep(directory: Path, batch: Batch, form: str = "jsonl.gz", every: Every = "month") -> None:
    with opened(directory, form, every) as store:
        store.prepare(SHAPE)
        for copy in store.write(batch):
            store.settle(copy, range(len(copy.batch.rows)))


def kept(directory: Path, selection: Selection | None = None) -> list[Row]:
    with opened(directory) as store:
        found = [row for copy in store.find(selection or Selection(), PACE) for row in copy.batch.rows]
    return sorted(found, key=lambda row: row.done_at)


def wrong(directory: Path) -> dict[str, tuple[str, ...]]:
    with opened(directory, read_only=True) as store:
        return {checked.name: checked.wrong for checked in store.check() if checked.wrong}


def part(directory: Path, suffix: str = "jsonl.gz") -> Path:
    return min(directory.glob(f"*/*/part-*.{suffix}"))


ODD = Batch(
    SHAPE,
    (
        row(1, result=b""),
        row(2, result=None, date_done=None),
        row(3, result=b"\x00\xff\r\n\x1f\x8b", task_id='quo"te\\ ☃ \n\t\x7f'),
        row(4, id=2**63 - 1, extra="12345678901234567890.123"),
        row(5, date_done=datetime.fromisoformat("2026-11-05T01:02:03.000004"), result=os.urandom(5000)),
        row(6, date_done=datetime.fromisoformat("0001-01-01"), task_id=""),
    ),
)


@pytest.mark.parametrize("form", FORMATS)
def test_every_byte_comes_back(directory: Path, form: str) -> None:
    keep(directory, ODD, form)
    assert kept(directory) == list(ODD.rows)
    assert wrong(directory) == {}


@pytest.mark.parametrize(
    ("every", "periods"),
    [
        ("month", ["2026-10", "2026-11"]),
        ("week", ["2026-W44", "2026-W45"]),
        ("day", ["2026-10-30", "2026-10-31", "2026-11-01", "2026-11-02"]),
    ],
)
def test_a_file_for_each_period_and_run(directory: Path, every: Every, periods: list[str]) -> None:
    for run in (range(40), range(40, 72)):
        keep(directory, Batch(SHAPE, tuple(row(number) for number in run)), every=every)
    assert sorted(path.name for path in (directory / "celery_taskmeta").iterdir()) == periods
    assert [row.values[0] for row in kept(directory)] == list(range(72))
    for period in (directory / "celery_taskmeta").iterdir():
        manifest = json.loads((period / "manifest.json").read_text())
        assert {entry["name"] for entry in manifest["parts"]} == {path.name for path in period.glob("part-*")}
        assert manifest["rows"] == sum(entry["rows"] for entry in manifest["parts"])


def test_what_did_not_stay_at_the_source_alone_is_the_archives(directory: Path) -> None:
    with opened(directory) as store:
        store.prepare(SHAPE)
        (copy,) = store.write(Batch(SHAPE, tuple(row(number) for number in range(10))))
        store.settle(copy, {0, 1, 5, 9})
        store.settle(copy, {0, 1, 5, 9})
    assert [row.values[0] for row in kept(directory)] == [0, 1, 5, 9]
    (entry,) = json.loads(next(directory.glob("*/*/manifest.json")).read_text())["parts"]
    assert entry["without"] == [[2, 4], [6, 8]]
    assert wrong(directory) == {}


def test_a_file_of_which_nothing_is_left_goes(directory: Path) -> None:
    with opened(directory) as store:
        store.prepare(SHAPE)
        (copy,) = store.write(Batch(SHAPE, (row(1),)))
        store.settle(copy, ())
    assert list(directory.glob("*/*/part-*")) == []
    assert wrong(directory) == {}


def test_an_unfinished_copy_is_found_again(directory: Path) -> None:
    with opened(directory) as store:
        store.prepare(SHAPE)
        written = store.write(rows(40))
    with opened(directory) as store:
        assert [copy.batch for copy in store.unfinished()] == [copy.batch for copy in written]
        for copy in store.unfinished():
            store.settle(copy, range(len(copy.batch.rows)))
        assert list(store.unfinished()) == []
    assert len(kept(directory)) == 40


def test_what_died_before_it_was_there_is_forgotten(directory: Path) -> None:
    keep(directory, rows(5))
    with opened(directory) as store:
        store.write(rows(5))
    left = max(directory.glob("*/*/part-*"))
    left.rename(left.with_name(left.name + ".tmp"))
    assert wrong(directory) == {}
    with opened(directory) as store:
        assert list(store.unfinished()) == []
    assert [path.name for path in left.parent.glob("*.tmp")] == []
    assert len(kept(directory)) == 5


def test_what_is_there_already_is_not_written_again(directory: Path) -> None:
    keep(directory, rows(10))
    changed = Batch(SHAPE, (*rows(12).rows[:11], row(11, result=b"other")))
    with opened(directory) as store:
        (copy,) = store.write(changed, unless_there=True)
        assert [row.values[0] for row in copy.batch.rows] == [10, 11]
        store.settle(copy, range(2))
        assert store.write(changed, unless_there=True) == []
    # Nor after the length of a period has changed.
    for every in ("day", "week"):
        with opened(directory, every=every) as store:
            assert store.write(changed, unless_there=True) == []


def test_a_restore_takes_rows_out_and_a_crash_in_it_is_seen(directory: Path) -> None:
    keep(directory, rows(10))
    with opened(directory) as store:
        (found,) = store.find(Selection(ids=("task-3", "task-7", "no-such")), PACE)
        leaving = store.begin_restore(found, {0})
        (unfinished,) = store.unfinished()
        assert unfinished.restoring
        assert unfinished.batch == leaving.batch == Batch(SHAPE, (row(7),))
        store.settle(unfinished, ())
        assert list(store.unfinished()) == []
    assert [row.values[0] for row in kept(directory)] == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def test_a_selection_by_time(directory: Path) -> None:
    keep(directory, rows(48))
    since, until = START + timedelta(hours=30), START + timedelta(hours=40)
    assert [row.values[0] for row in kept(directory, Selection(since=since, until=until))] == list(range(30, 40))
    assert [row.values[0] for row in kept(directory, Selection(("task-3", "task-35"), since=since))] == [35]


def _flip(directory: Path) -> None:
    damaged = bytearray(part(directory).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    part(directory).write_bytes(damaged)


def _cut(directory: Path) -> None:
    os.truncate(part(directory), part(directory).stat().st_size - 10)


def _edit(old: str, new: str) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = min(directory.glob("*/*/manifest.json"))
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_flip, "SHA-256"),
        (_cut, "SHA-256 is not the one it was written with, and it has"),
        (lambda directory: part(directory).unlink(), "missing, with 12 archived rows"),
        (lambda directory: (part(directory).parent / "part-x.jsonl.gz").touch(), "not in manifest.json"),
        (lambda directory: min(directory.glob("*/*/manifest.json")).unlink(), "there is no manifest.json"),
        (_edit('"rows": 12', '"rows": 13'), "it has 12 rows instead of 13"),
        (_edit('"first_done_at": "2026-10-30T12', '"first_done_at": "2026-10-30T13'), "first or last done_at"),
        (_edit('"end": "2026-11-01', '"end": "2026-10-30'), "did not finish in 2026-10"),
        (_edit('"without": []', '"without": [[3, 12]]'), "speaks of rows that it does not have"),
        (_edit('"without": []', '"without": [[6, 17]]'), "speaks of rows that it does not have"),
        (_edit('"without": []', '"without": [[0, 5], [0, 5]]'), "or twice of the same"),
        (_edit('"without": []', '"without": [[0, 2]]'), "files have 9 archived rows, and it says 12"),
        (_edit('"name": "task_id"', '"name": "task"'), "does not know its columns task_id"),
        (_edit('"state": "kept"', '"state": "arrived"'), "is 'arrived'"),
        (_edit('"rows": 12', '"rows": "12"'), "not a manifest of backendops"),
        (_edit('+00:00"', '"'), "no time zone"),
        (_edit('"kind": "bytes"', '"kind": "byte"'), "of a kind that is not known"),
        (_edit('"parts": [', '"parts": '), "not a manifest of backendops"),
        (_edit('"name": "part-', '"name": "../part-'), "not a file beside it"),
    ],
)
def test_verify_finds_damage(directory: Path, damage: Callable[[Path], None], words: str) -> None:
    keep(directory, rows(12))
    assert wrong(directory) == {}
    damage(directory)
    files = sorted(directory.glob("*/*/part-*"))
    (said,) = wrong(directory).values()
    assert words in said[0]
    if "manifest" in words or "rows" in words:
        # What nobody can know, no run guesses: nothing is deleted, and nothing more is written.
        with opened(directory) as store, suppress(BackendRefused):
            assert list(store.unfinished()) == []
    assert sorted(directory.glob("*/*/part-*")) == files


def test_a_manifest_that_is_gone_is_not_begun_again(directory: Path) -> None:
    keep(directory, rows(12))
    manifest = part(directory).with_name("manifest.json")
    manifest.rename(directory / "backup")
    for again in (lambda: keep(directory, rows(3)), lambda: kept(directory)):
        with pytest.raises(BackendRefused, match=r"no manifest.json in .* beside 1 files"):
            again()
    (directory / "backup").rename(manifest)
    assert len(kept(directory)) == 12


def test_a_copy_of_a_period_is_not_a_second_archive(directory: Path) -> None:
    keep(directory, rows(12))
    shutil.copytree(part(directory).parent, directory / "celery_taskmeta" / "2026-10.bak")
    assert "is the manifest of celery_taskmeta/2026-10" in wrong(directory)["celery_taskmeta/2026-10.bak"][0]
    with pytest.raises(BackendRefused, match=r"2026-10.bak/manifest.json is the manifest of") as refusal:
        kept(directory)
    assert "move it out" in refusal.value.hint


@pytest.mark.parametrize("form", FORMATS)
def test_a_changed_byte_is_never_given_out(directory: Path, form: str) -> None:
    """Wherever it is: Parquet keeps no checksums, and gzip checks at its end."""
    keep(directory, rows(12), form)
    path = part(directory, form)
    whole = path.read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(BackendRefused, match="SHA-256"):
            kept(directory)
    path.write_bytes(whole)
    assert len(kept(directory)) == 12


def test_a_clock_that_stands_still_does_not_take_a_missing_files_name(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Standing(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(2026, 11, 1, tzinfo=tz)

    monkeypatch.setattr(parts, "datetime", Standing)
    keep(directory, rows(5))
    part(directory).rename(directory / "elsewhere")
    keep(directory, rows(5))
    assert part(directory).name == "part-20261101T000000Z-0002.jsonl.gz"
    (said,) = wrong(directory).values()
    assert "missing, with 5 archived rows" in said[0]


def test_a_disk_that_does_not_answer_is_not_an_empty_one(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(directory) as store:
        store.prepare(SHAPE)
        store.write(rows(5))
    before = min(directory.glob("*/*/manifest.json")).read_bytes()

    def sick(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patched, opened(directory) as store:
        patched.setattr(Path, "lstat", sick)
        with pytest.raises(BackendError, match="Input/output error"):
            list(store.unfinished())
    assert min(directory.glob("*/*/manifest.json")).read_bytes() == before


def test_verify_does_not_take_a_restore_for_damage(directory: Path) -> None:
    keep(directory, rows(3))
    keep(directory, Batch(SHAPE, (row(5),)))
    with opened(directory, read_only=True) as reader, opened(directory) as store:
        checks = reader.check()
        first = next(checks)
        for copy in store.find(Selection(), PACE):
            store.settle(store.begin_restore(copy, range(len(copy.batch.rows))), ())
        assert [first.wrong, *(each.wrong for each in checks)] == [()]


@pytest.mark.parametrize("damage", [_flip, _cut])
@pytest.mark.parametrize("form", FORMATS)
def test_damaged_rows_are_refused_and_never_given_out(
    directory: Path, form: str, damage: Callable[[Path], None]
) -> None:
    keep(directory, rows(12), form)
    content = bytearray(part(directory, form).read_bytes())
    part(directory, form).write_bytes(content[: len(content) // 2] if damage is _cut else content[:40] + b"\xff" * 9)
    with pytest.raises(BackendRefused, match="cannot be read") as refusal:
        kept(directory)
    assert "verify" in refusal.value.hint


def test_a_full_disk_keeps_nothing_and_says_so(directory: Path) -> None:
    period = directory / "celery_taskmeta" / "2026-10"
    period.mkdir(parents=True)
    # What the kernel answers on a full disk: the manifest's own temporary file leads to /dev/full.
    (period / "manifest.json.tmp").symlink_to("/dev/full")
    with opened(directory) as store:
        store.prepare(SHAPE)
        with pytest.raises(BackendError, match="no space left") as failure:
            store.write(rows(10))
    assert "no result is lost" in failure.value.hint
    assert list(period.iterdir()) == []
    keep(directory, rows(10))
    assert len(kept(directory)) == 10


@contextmanager
def as_nobody(directory: Path) -> Iterator[None]:
    """As a user without rights, for what root may always."""
    # pytest keeps the whole way there to its own user.
    way = [
        path for path in directory.parents if path.stat().st_uid == os.geteuid() and path.stat().st_mode & 0o005 != 5
    ]
    modes = [path.stat().st_mode for path in way]
    ours = os.geteuid()
    for path in way:
        path.chmod(0o755)
    if ours == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(ours)
        for path, mode in zip(way, modes, strict=True):
            path.chmod(mode)


def test_what_cannot_be_read_is_not_passed_over(directory: Path) -> None:
    keep(directory, Batch(SHAPE, (*rows(3).rows, row(50))))
    closed = directory / "celery_taskmeta" / "2026-10"
    closed.chmod(0o000)
    with as_nobody(directory), opened(directory, read_only=True) as store:
        assert "may not be read" in {each.name: each.wrong for each in store.check()}["celery_taskmeta/2026-10"][0]
        with pytest.raises(BackendRefused, match="may not be"):
            list(store.find(Selection(), PACE))
    closed.chmod(0o755)


def test_who_may_only_read_may_verify(directory: Path) -> None:
    keep(directory, rows(3))
    directory.chmod(0o555)
    with as_nobody(directory):
        assert wrong(directory) == {}


def test_a_read_only_file_system_is_called_that(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(directory, rows(3))
    real = os.statvfs(directory)
    flagged = os.statvfs_result((*real[:8], real.f_flag | os.ST_RDONLY, *real[9:]))
    monkeypatch.setattr(os, "statvfs", lambda path: flagged)
    with pytest.raises(BackendRefused, match="is on a read-only file system"), opened(directory):
        pass
    assert wrong(directory) == {}


def test_a_directory_that_is_another_by_now_takes_nothing(directory: Path, tmp_path: Path) -> None:
    """Its disk went, and the mount point is there; or somebody removed the lock file, and a second run began."""
    keep(directory, rows(3))
    with opened(directory) as store:
        directory.rename(tmp_path / "unmounted")
        directory.mkdir()
        with pytest.raises(BackendError, match="is not the file any more that this run holds"):
            store.write(rows(5))
    assert list(directory.iterdir()) == []


def test_places_that_cannot_be_used(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, words in ((tmp_path / "missing", "no directory"), (tmp_path / "file", "not a directory")):
        with pytest.raises(BackendRefused, match=words) as refusal, opened(place):
            pass
        assert refusal.value.hint
    directory.chmod(0o555)
    with (
        as_nobody(directory),
        pytest.raises(BackendRefused, match="may not be written by"),
        opened(directory),
    ):
        pass


def test_one_run_at_a_time_and_one_source(directory: Path) -> None:
    with opened(directory), pytest.raises(BackendLocked, match="another run"), opened(directory):
        pass
    keep(directory, rows(3))
    with (
        opened(directory, source="others") as store,
        pytest.raises(BackendRefused, match="archive of the backend 'res"),
    ):
        list(store.unfinished())


def test_names_that_would_lead_elsewhere_are_refused(directory: Path) -> None:
    with opened(directory) as store:
        for name in ("../etc", "a/b", ".hidden"):
            with pytest.raises(BackendRefused, match="cannot be the name"):
                store.prepare(Shape("task", name, SHAPE.columns))
        with pytest.raises(BackendRefused, match="done_at of its own"):
            store.prepare(Shape("task", "t", (Column("done_at", "timestamp"),)))


def test_ranges_of_lines() -> None:
    assert as_lines([5, 1, 2, 2, 9, 10]) == ((1, 2), (5, 5), (9, 10))
    assert numbers_of(as_lines(range(100))) == set(range(100))
    assert as_lines([]) == ()


def test_a_fingerprint_is_of_the_content() -> None:
    grown = Shape("task", "t", (*SHAPE.columns, Column("stamps", "bytes")))
    turned = Shape("task", "t", tuple(reversed(SHAPE.columns)))
    one = row(1)
    assert fingerprint(SHAPE, one) == fingerprint(grown, Row((*one.values, None), one.done_at))
    assert fingerprint(SHAPE, one) == fingerprint(turned, Row(tuple(reversed(one.values)), one.done_at))
    assert fingerprint(SHAPE, one) != fingerprint(SHAPE, row(2))
    assert fingerprint(SHAPE, one, leaving_out={"id"}) == fingerprint(SHAPE, row(1, id=99), leaving_out={"id"})
    # Text and bytes of the same letters are not the same.
    assert fingerprint(SHAPE, row(1, task_id="a")) != fingerprint(SHAPE, row(1, task_id=b"a"))
