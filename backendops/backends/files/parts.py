"""One file of an archive: written beside, read back, taken down in the manifest, and only then under its own name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from backendops.backends.files.disk import UNFINISHED, disk_errors, is_there, sync_directory, sync_file
from backendops.backends.files.manifest import PART, Manifest, Part, digest
from backendops.backends.files.rows import FORMATS, Format
from backendops.contracts.archive import Batch, Row, Shape, fingerprint
from backendops.contracts.errors import BackendError, BackendRefused


def write_part(directory: Path, manifest: Manifest, form: Format, batch: Batch, origin: str) -> str:
    """Write a new file of the period, to be settled; its name."""
    path = _free_name(directory, manifest, form)
    beside = path.with_name(path.name + UNFINISHED)
    try:
        with disk_errors(path):
            form.write(beside, batch)
            sync_file(beside)
        part = _read_back(beside, path.name, form, batch)
        # First taken down, then there: what is not taken down is nobody's, and may be cleared away.
        manifest.with_part(replace(part, origin=origin)).save(directory)
        with disk_errors(path):
            beside.rename(path)
            sync_directory(directory)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    return path.name


def _free_name(directory: Path, manifest: Manifest, form: Format) -> Path:
    # A clock that went back comes to the same second again; a file that is missing keeps its entry until it is back.
    taken = {part.name for part in manifest.parts}
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for number in range(1, 10_000):
        path = directory / f"{PART}{stamp}-{number:04}.{form.suffix}"
        if path.name not in taken and not is_there(path):
            return path
    raise BackendError(f"{directory} has ten thousand files of this second", "is the host's clock standing still?")


def _read_back(path: Path, name: str, form: Format, batch: Batch) -> Part:
    shape = batch.shape
    with disk_errors(path):
        sha256, size = digest(path)
        try:
            same = sum(
                _same(shape, read, written)
                for (_, read), written in zip(form.read(path, shape), batch.rows, strict=True)
            )
        except ValueError as error:
            raise _misread(path, str(error)) from None
    if same != len(batch.rows):
        raise _misread(path, f"{len(batch.rows) - same:,} of its rows are not as they were written")
    moments = [row.done_at for row in batch.rows]
    return Part(
        name=name,
        format=form.suffix,
        state="arriving",
        rows=len(batch.rows),
        bytes=size,
        sha256=sha256,
        first_done_at=min(moments),
        last_done_at=max(moments),
        written_at=datetime.now(UTC),
        columns=shape.columns,
    )


def _same(shape: Shape, read: Row, written: Row) -> bool:
    return read.done_at == written.done_at and fingerprint(shape, read) == fingerprint(shape, written)


def _misread(path: Path, why: str) -> BackendError:
    return BackendError(
        f"what was written to {path} was not read back: {why}", "see to the disk; no result was removed because of it"
    )


def read_rows(
    directory: Path, manifest: Manifest, part: Part, ids: Sequence[str] = (), *, verified: bool = False
) -> Iterator[tuple[int, Row]]:
    """The rows of a file with their numbers; raises BackendRefused, before the first, where it is not as written.

    `verified` says that its SHA-256 was looked at just now.
    """
    path = directory / part.name
    form = FORMATS.get(part.format)
    if form is None:
        raise BackendRefused(f"{path} is {part.format!r}, which this backendops does not read", "take a newer version")
    if extra := form.is_missing():
        raise BackendRefused(f"{path} is Parquet", f"pip install 'backendops[{extra}]'")
    if not is_there(path):
        raise BackendRefused(f"{path} is in the manifest and not on the disk", "bring it back from a backup")
    with disk_errors(path):
        # A row that a bad disk changed may still be read: Parquet has no checksums of its own.
        if not verified and digest(path)[0] != part.sha256:
            raise _damaged(path, "its SHA-256 is not the one it was written with")
        try:
            yield from form.read(path, manifest.shape(part), ids)
        except ValueError as error:
            raise _damaged(path, str(error)) from None


def _damaged(path: Path, why: str) -> BackendRefused:
    return BackendRefused(
        f"{path} cannot be read: {why}",
        "`backendops archive verify` says what is wrong with it; bring it back from a backup",
    )
