"""Archives in files: a directory per period, in it files that never change and a manifest that says what counts."""

from __future__ import annotations

from backendops.backends.files.rows import FORMATS
from backendops.backends.files.store import FileStore

__all__ = ["FORMATS", "FileStore"]
