"""Reads a YAML file into values that know their line and column; whatever could be misread is a problem."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from backendops.contracts.errors import Problem
from backendops.policy.scalars import Plain, is_text, resolve
from backendops.policy.syntax import in_words, mark_of

# The deepest key of a policy is five levels down; Python's own recursion limit is far above this.
_DEEPEST: Final = 40
# A policy of a thousand jobs has a tenth of this; reading more only takes time.
_LARGEST_FILE: Final = 2 * 1024 * 1024
# A message is one line of a terminal: what it quotes from the policy is cut.
_LONG_QUOTE: Final = re.compile(r"('[^']{60})[^']{20,}'")
_SECRET_KEY: Final = re.compile(r"(?:url|password|secret|token)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something stands in the file, counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


START: Final = Place(1, 1)


class Problems:
    """The faults found in one file so far."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: dict[Problem, None] = {}

    def add(self, place: Place, message: str) -> None:
        shown = _LONG_QUOTE.sub(r"\1…'", " ".join(message.split()))
        self._found[Problem(self.file, place.line, place.column, shown)] = None

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True, slots=True)
class Value:
    """A YAML value and its place. `broken`: its fault is already reported, so nothing else is said about it."""

    place: Place
    data: Plain | list[Value] | dict[str, Entry]
    broken: bool = False
    expanded: tuple[str, ...] = ()
    """What `${...}` put into it."""

    def at(self, *keys: str | int) -> Value | None:
        """The value under these keys, as far as there is one."""
        value: Value | None = self
        for key in keys:
            if value is None:
                return None
            if isinstance(value.data, dict) and key in value.data:
                value = value.data[str(key)].value
            elif isinstance(value.data, list) and isinstance(key, int) and key < len(value.data):
                value = value.data[key]
            else:
                return None
        return value


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's place and its value."""

    place: Place
    value: Value


def is_secret(key: str) -> bool:
    """May the value of this key hold a password? Then no message shows it."""
    return _SECRET_KEY.search(key) is not None


def read_document(path: Path, problems: Problems) -> Value | None:
    """The whole file as one value; None where it cannot be read, with the reason among `problems`."""
    text = _text(path, problems)
    if text is None:
        return None
    try:
        return _Reader(yaml.parse(text, Loader=yaml.SafeLoader), problems).document()
    except _CannotReadOnError as stop:
        problems.add(stop.place, stop.message)
    except yaml.MarkedYAMLError as error:
        problems.add(_place(mark_of(error)), in_words(error))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, error.position - before.rfind("\n"))
        problems.add(place, "an invisible control character stands here: remove it")
    return None


def _content(path: Path) -> bytes:
    """The file's bytes; raises ValueError that says why they cannot be had."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ValueError(
            "there is no such file: write it, from config/policy.yaml of the sources, or name another with --policy"
        ) from None
    except IsADirectoryError:
        raise ValueError("this is a directory: name the policy file in it") from None
    except PermissionError:
        raise ValueError(
            "this file may not be read by the user that backendops runs as: check its mode and owner"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"this file cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > _LARGEST_FILE:
        raise ValueError("this file is over 2 MiB: is it a policy?")
    return content


def _text(path: Path, problems: Problems) -> str | None:
    try:
        content = _content(path)
    except ValueError as error:
        problems.add(START, str(error))
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        place = Place(before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        problems.add(place, "this file is not UTF-8 from here on: save it as UTF-8")
        return None


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark else START


class _CannotReadOnError(Exception):
    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place, self.message = place, message


class _Reader:
    """Builds values from YAML's events, where anchors, tags and quotes can still be seen."""

    def __init__(self, events: Iterable[yaml.Event], problems: Problems) -> None:
        self._events = iter(events)
        self._problems = problems

    def document(self) -> Value:
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            raise _CannotReadOnError(START, "the policy is empty: it needs version, backends and jobs")
        value = self._value(next(self._events), depth=0)
        next(self._events)  # the end of the document
        following = next(self._events)
        if not isinstance(following, yaml.StreamEndEvent):
            raise _CannotReadOnError(
                _place(following.start_mark), "a second document begins here: a policy is one, without further '---'"
            )
        return value

    def _value(self, event: yaml.Event, depth: int, secret: bool = False) -> Value:
        place = _place(event.start_mark)
        if depth > _DEEPEST:
            raise _CannotReadOnError(place, "this is nested too deeply to be a policy")
        broken = self._refuse_indicators(event)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, broken, secret)
        if isinstance(event, yaml.SequenceStartEvent):
            return Value(place, self._list(depth, secret), broken)
        if isinstance(event, yaml.MappingStartEvent):
            return Value(place, self._mapping(depth, secret), broken)
        return Value(place, None, broken=True)  # an alias

    def _refuse_indicators(self, event: yaml.Event) -> bool:
        place = _place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            self._problems.add(
                place,
                "a value that starts with * refers to an anchor, which backendops does not use: quote or repeat it",
            )
            return True
        if getattr(event, "anchor", None) is not None:
            self._problems.add(
                place, "& makes an anchor, which backendops does not use: remove it, or put the value in quotes"
            )
            return True
        if getattr(event, "tag", None) is not None:
            self._problems.add(
                place, "! makes a tag, which backendops does not use: remove it, or put the value in quotes"
            )
            return True
        return False

    def _scalar(self, event: yaml.ScalarEvent, broken: bool, secret: bool) -> Value:
        place, text = _place(event.start_mark), event.value
        if not is_text(text):
            self._problems.add(place, "an escape here makes a zero byte or half a character: remove it")
            return Value(place, None, broken=True)
        if event.style is not None or broken:
            return Value(place, text, broken)
        try:
            return Value(place, resolve(text, "this value" if secret else text))
        except ValueError as trap:
            self._problems.add(place, str(trap))
            return Value(place, text, broken=True)

    def _list(self, depth: int, secret: bool) -> list[Value]:
        items = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, depth + 1, secret))
        return items

    def _mapping(self, depth: int, secret: bool) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            place = _place(event.start_mark)
            key = self._key(event, depth)
            value = self._value(next(self._events), depth + 1, secret or (key is not None and is_secret(key)))
            if key is None:
                continue
            if key in entries:
                self._problems.add(place, f"{key!r} is given twice, first at {entries[key].place}: remove one")
                continue
            entries[key] = Entry(place, value)
        return entries

    def _key(self, event: yaml.Event, depth: int) -> str | None:
        key, place = self._value(event, depth + 1), _place(event.start_mark)
        if key.broken:
            return None
        if key.data == "<<" and isinstance(event, yaml.ScalarEvent) and event.style is None:
            self._problems.add(place, "<< merges mappings, which backendops does not do: write the keys out")
            return None
        if isinstance(key.data, (list, dict)):
            self._problems.add(place, "a key must be a word, not a list or a mapping (is a '{' one too many?)")
            return None
        if not isinstance(key.data, str):
            self._problems.add(place, "this key is a number, a boolean or nothing to YAML: write a word, or quote it")
            return None
        return key.data
