"""Verifying one period: every file is there, is as it was written, and holds what the manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from backendops.backends.files.disk import UNFINISHED, disk_errors, is_there
from backendops.backends.files.manifest import NAME, Manifest, Part, digest, load
from backendops.backends.files.parts import read_rows
from backendops.contracts.archive import Checked
from backendops.contracts.errors import BackendError


def check_period(directory: Path, archive: Path) -> Iterator[Checked]:
    """Read every file of a period again; damage is told, never raised."""
    where = str(directory.relative_to(archive))
    # Listed first: a run that goes on takes each file down in the manifest before it is there.
    try:
        with disk_errors(directory):
            there = {path.name for path in directory.iterdir() if path.is_file() and not path.name.endswith(UNFINISHED)}
        manifest = load(directory)
    except BackendError as error:
        yield Checked(where, 0, (str(error),))
        return
    if manifest is None:
        if there:
            yield Checked(where, 0, (f"there is no {NAME}, and {len(there)} files that nothing is known of",))
        return
    for part in manifest.parts:
        checked = _check_part(directory, manifest, part, f"{where}/{part.name}")
        if not (checked.wrong and _is_forgotten(directory, part)):
            yield checked
    for name in sorted(there - {NAME, *(part.name for part in manifest.parts)}):
        if (directory / name).exists():
            yield Checked(f"{where}/{name}", 0, (f"it is not in {NAME}: its rows may be elsewhere as well",))


def _is_forgotten(directory: Path, part: Part) -> bool:
    """Was the last of it put back while it was being read? A restore deletes the file, and then its entry."""
    try:
        now = load(directory)
    except BackendError:
        return False
    entry = next((each for each in now.parts if each.name == part.name), None) if now else None
    return entry is None or not entry.archived


def _check_part(directory: Path, manifest: Manifest, part: Part, name: str) -> Checked:
    path = directory / part.name
    try:
        missing = not is_there(path)
        with disk_errors(path):
            sha256, size = ("", 0) if missing else digest(path)
    except BackendError as error:
        return Checked(name, 0, (f"it cannot be read: {error}",))
    if missing:
        wrong = f"the file is missing, with {part.archived:,} archived rows"
        # Taken down, and then the process died: its rows are live, and the next run forgets it.
        return Checked(name, 0, () if part.state == "arriving" or not part.archived else (wrong,))
    if sha256 != part.sha256:
        size_too = f", and it has {size:,} bytes instead of {part.bytes:,}" if size != part.bytes else ""
        return Checked(name, 0, (f"its SHA-256 is not the one it was written with{size_too}",))
    return Checked(name, part.archived, tuple(_content(directory, manifest, part)))


def _content(directory: Path, manifest: Manifest, part: Part) -> Iterator[str]:
    try:
        moments = [row.done_at for _, row in read_rows(directory, manifest, part, verified=True)]
    except BackendError as error:
        yield str(error)
        return
    if len(moments) != part.rows:
        yield f"it has {len(moments):,} rows instead of {part.rows:,}"
    if moments and (min(moments), max(moments)) != (part.first_done_at, part.last_done_at):
        yield "its first or last done_at is not the manifest's"
    if moments and not (manifest.start <= min(moments) and max(moments) < manifest.end):
        yield f"it has rows that did not finish in {manifest.period}"
