"""Fills `${VAR}`, `${VAR:-default}` and `${file:/path}` in; `$$` is a dollar sign. What is missing is a problem."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from backendops.policy.document import Entry, Problems, Value
from backendops.policy.scalars import is_text

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FORMS: Final = "write ${NAME}, ${NAME:-default} or ${file:/path}, and $$ for a dollar sign"
# A certificate chain in one file is a tenth of this; a secret is far shorter.
_LONGEST_FILE: Final = 64 * 1024


def expand(value: Value, problems: Problems, environment: Mapping[str, str] | None = None) -> Value:
    """The value with every `${...}` filled in; relative files are looked for beside the policy."""
    folder = Path(problems.file).parent
    return _Expansion(problems, os.environ if environment is None else environment, folder).value(value)


@dataclass(slots=True)
class _Expansion:
    problems: Problems
    environment: Mapping[str, str]
    folder: Path
    _filled: list[str] = field(default_factory=list)

    def value(self, value: Value) -> Value:
        if isinstance(value.data, list):
            return replace(value, data=[self.value(item) for item in value.data])
        if isinstance(value.data, dict):
            entries = {key: Entry(entry.place, self.value(entry.value)) for key, entry in value.data.items()}
            return replace(value, data=entries)
        if not isinstance(value.data, str) or "$" not in value.data or value.broken:
            return value
        return self._text(value, value.data)

    def _text(self, value: Value, text: str) -> Value:
        self._filled = []
        try:
            data = self._fill(text, depth=0)
        except ValueError as error:
            self.problems.add(value.place, str(error))
            return replace(value, broken=True)
        return replace(value, data=data, expanded=tuple(self._filled))

    def _fill(self, text: str, depth: int) -> str:
        parts, position = [], 0
        while (dollar := text.find("$", position)) >= 0:
            parts.append(text[position:dollar])
            following = text[dollar + 1 : dollar + 2]
            if following == "{":
                end = _closing_brace(text, dollar + 1)
                parts.append(self._reference(text[dollar + 2 : end], depth))
                position = end + 1
            else:
                # A lone dollar sign stands for itself: passwords have them.
                parts.append("$")
                position = dollar + (2 if following == "$" else 1)
        parts.append(text[position:])
        return "".join(parts)

    def _reference(self, inside: str, depth: int) -> str:
        # Two levels are useful, ${file:${DIRECTORY}/name}; ten are a mistake.
        if depth >= 10:  # noqa: PLR2004 - said above
            raise ValueError("${ is nested too deeply")
        if inside.startswith("file:"):
            filled = self._file(self._fill(inside.removeprefix("file:"), depth + 1))
        else:
            filled = self._variable(inside, depth)
        if filled:
            self._filled.append(filled)
        return filled

    def _variable(self, inside: str, depth: int) -> str:
        match = _NAME.match(inside)
        name, rest = (match[0], inside[match.end() :]) if match else ("", inside)
        if not name or not (rest == "" or rest.startswith(":-")):
            raise ValueError(f"${{{name}...}} is not a form backendops knows: {_FORMS}")
        value = self.environment.get(name)
        if rest and not value:
            return self._fill(rest.removeprefix(":-"), depth + 1)
        if value is None:
            raise ValueError(f"the environment variable {name} is not set: set it, or write ${{{name}:-default}}")
        if not is_text(value):
            raise ValueError(f"the environment variable {name} is not UTF-8 text")
        return value

    def _file(self, name: str) -> str:
        if not name:
            raise ValueError("${file:} names no file: write ${file:/path}")
        path = self.folder / name
        try:
            # os.path: pathlib raises for a name that is too long, which opening it says better.
            if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - see above
                raise ValueError(f"{path} is not a file: ${{file:...}} reads one secret from one file")
            with path.open("rb") as file:
                content = file.read(_LONGEST_FILE + 1)
        except OSError as error:
            raise ValueError(f"the file {path} of ${{file:...}} cannot be read: {error.strerror or error}") from None
        if len(content) > _LONGEST_FILE:
            raise ValueError(f"the file {path} of ${{file:...}} is over 64 KiB: is it the right one?")
        text = content.decode("utf-8", "surrogateescape")
        if not is_text(text):
            raise ValueError(f"the file {path} of ${{file:...}} is not UTF-8 text")
        return text.removesuffix("\n").removesuffix("\r")


def _closing_brace(text: str, opening: int) -> int:
    depth = 0
    for position in range(opening, len(text)):
        # Only ${ opens another level: a lone { in a default is text.
        if text[position] == "{" and text[position - 1] == "$":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return position
    raise ValueError(f"${{ is never closed: {_FORMS}")
