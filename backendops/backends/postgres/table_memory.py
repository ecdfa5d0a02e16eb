"""What a vacuum run remembers of tables for the next one; losing it costs speed, or a repeated try."""

from __future__ import annotations

import json
from collections.abc import Iterable

from backendops.backends.postgres.vacuum_work import Table
from backendops.contracts.run import Watermarks


class TableMemory:
    """A word for each table, by oid."""

    def __init__(self, watermarks: Watermarks, key: str) -> None:
        self._watermarks = watermarks
        self._key = key
        try:
            remembered = json.loads(watermarks.recall(key) or "{}")
        except ValueError:
            remembered = {}
        self._words: dict[str, str] = remembered if isinstance(remembered, dict) else {}

    def of(self, table: Table) -> str | None:
        """What was noted of the table; None where nothing was."""
        return self._words.get(str(table.oid))

    def note(self, table: Table, word: str) -> None:
        """Take it down."""
        self._words[str(table.oid)] = word

    def forget(self, table: Table) -> None:
        """There is nothing to be known of it any more."""
        self._words.pop(str(table.oid), None)

    def keep(self, tables: Iterable[Table]) -> None:
        """Remember for the next run what still exists."""
        there = {str(table.oid) for table in tables}
        self._words = {oid: word for oid, word in self._words.items() if oid in there}
        written = json.dumps(self._words, sort_keys=True)
        if written != (self._watermarks.recall(self._key) or "{}"):
            self._watermarks.remember(self._key, written)
