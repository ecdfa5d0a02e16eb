"""Turns a mapping of the policy into a pydantic model, and pydantic's complaints into an operator's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from datetime import time
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from backendops.policy.document import Entry, Place, Problems, Value, is_secret

Model = TypeVar("Model", bound=BaseModel)

# A message is one line of a terminal; what is longer is cut.
_LONGEST_SHOWN: Final = 60

# By pydantic's error type: what the value must be. {…} are pydantic's own figures.
_MUST_BE: Final = {
    "string_type": "text: put it in quotes",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list, such as [one, two]",
    "tuple_type": "a list, such as [one, two]",
    "set_type": "a list, such as [one, two]",
    "dict_type": "a mapping, such as {{key: value}}",
    "model_type": "a mapping, such as {{key: value}}",
    "model_attributes_type": "a mapping, such as {{key: value}}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "time_type": "a time of day in quotes, such as '02:00'",
    "time_parsing": "a time of day in quotes, such as '02:00'",
    "literal_error": "{expected}",
    "enum": "{expected}",
}


def bind(model: type[Model], value: Value, problems: Problems, what: str) -> Model | None:
    """The model with the mapping's values; None where it has problems. `what` is how messages call it."""
    if value.broken:
        return None
    if value.data is None:
        value = Value(value.place, {})
    if not isinstance(value.data, dict):
        problems.add(value.place, f"{what} must be a mapping of keys, not {described(value.data)}")
        return None
    before = len(problems)
    binding = _Binding(model, value, problems, what)
    binding.refuse_odd_types(model, value)
    try:
        bound = model.model_validate(plain(value))
    except ValidationError as error:
        binding.report(error.errors(include_url=False))
        return None
    # A value that is broken was left out: what is bound without it is not what the policy says.
    return bound if len(problems) == before and not _any_broken(value) else None


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was likely meant; None where none is close."""
    folded = {name.lower().replace("_", "-"): name for name in known}
    # 0.6 is difflib's own idea of close.
    close = difflib.get_close_matches(word.lower().replace("_", "-"), folded, n=1)
    return folded[close[0]] if close else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` where a known word is close; else the known ones."""
    known = list(known)
    if (meant := closest(word, known)) is not None:
        return f", did you mean {meant!r}?"
    return f": there is {_listed(known)}" if known else ""


def _listed(words: Iterable[str], last: str = "and") -> str:
    *most, end = words
    return f"{', '.join(most)} {last} {end}" if most else end


def described(data: object, secret: bool = False) -> str:
    """The value as a message shows it; of a secret only its kind."""
    if isinstance(data, (dict, list)):
        return "a mapping" if isinstance(data, dict) else "a list"
    if data is None:
        return "nothing"
    if isinstance(data, bool):
        return "true" if data else "false"
    if secret:
        return "this text" if isinstance(data, str) else "a number"
    shown = repr(data) if isinstance(data, str) else str(data)
    return shown if len(shown) <= _LONGEST_SHOWN else shown[: _LONGEST_SHOWN - 1] + "…"


def plain(value: Value) -> Any:
    """The value as Python data, without what is broken or null: a key without a value counts as left out."""
    if isinstance(value.data, list):
        return [plain(item) for item in value.data if not item.broken]
    if isinstance(value.data, dict):
        return {key: plain(entry.value) for key, entry in value.data.items() if _counts(entry)}
    return value.data


def _counts(entry: Entry) -> bool:
    return not entry.value.broken and entry.value.data is not None


def _any_broken(value: Value) -> bool:
    if isinstance(value.data, list):
        return value.broken or any(map(_any_broken, value.data))
    if isinstance(value.data, dict):
        return value.broken or any(_any_broken(entry.value) for entry in value.data.values())
    return value.broken


def _types(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in {Union, UnionType}:
        for argument in get_args(annotation):
            yield from _types(argument)
    elif get_origin(annotation) is Annotated:
        yield from _types(get_args(annotation)[0])
    else:
        yield annotation


def _fields(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The model's fields by the key that the policy uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models(field: FieldInfo) -> list[type[BaseModel]]:
    inside = (get_args(kind)[0] if get_origin(kind) is list else kind for kind in _types(field.annotation))
    return [kind for kind in inside if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _nested(model: type[BaseModel], keys: Iterable[str | int]) -> type[BaseModel] | None:
    """The model that stands under these keys, where there is one."""
    for key in keys:
        if isinstance(key, int):
            continue  # of a list, whose entries are of one model
        field = _fields(model).get(str(key))
        models = _models(field) if field else []
        if not models:
            return None
        model = models[0]
    return model


def _sentence(name: str, data: object, detail: ErrorDetails, secret: bool) -> str:
    # pydantic says 1.0 where the limit of a ratio is 1.
    context = {key: f"{part:g}" if isinstance(part, float) else part for key, part in detail.get("ctx", {}).items()}
    if detail["type"] in {"value_error", "assertion_error"}:
        return f"{name}: {context['error']}"
    shown = described(data, secret)
    must_be = _MUST_BE.get(detail["type"])
    if must_be is None:
        return f"{name} cannot be {shown}"
    sentence = f"{name} must be {must_be.format(**context)}"
    if must_be.endswith("quotes"):
        return f"{sentence} (it is {shown})"
    sentence = f"{sentence}, not {shown}"
    if detail["type"] in {"literal_error", "enum"} and isinstance(data, str):
        choices = [word.strip("' ") for word in context["expected"].replace(" or ", ",").split(",")]
        meant = closest(data, choices)
        sentence += f": did you mean {meant!r}?" if meant else ""
    return sentence


def _found(value: Value, keys: list[str | int]) -> tuple[list[str | int], Value]:
    """The keys that are in the policy, and the value under them: pydantic also counts a union's branches as keys."""
    present: list[str | int] = []
    for key in keys:
        if (inner := value.at(key)) is not None:
            present.append(key)
            value = inner
    return present, value


def _entry(value: Value, keys: list[str | int]) -> Entry | None:
    parent = value.at(*keys[:-1]) if keys else None
    return parent.data.get(str(keys[-1])) if parent is not None and isinstance(parent.data, dict) else None


class _Binding:
    """One mapping on its way into a model: what pydantic complains of, told once and at its place."""

    def __init__(self, model: type[BaseModel], value: Value, problems: Problems, what: str) -> None:
        self._model = model
        self._value = value
        self._problems = problems
        self._what = what
        self._told: set[Place] = set()
        self._told_keys: list[tuple[str | int, ...]] = []
        self._meant: set[str] = set()

    def refuse_odd_types(self, model: type[BaseModel], value: Value) -> None:
        """pydantic takes true for 1 and 7200 for two in the morning; an operator who writes that is mistaken."""
        for key, entry in value.data.items() if isinstance(value.data, dict) else ():
            field = _fields(model).get(key)
            if field is None or entry.value.broken:
                continue
            types, data = set(_types(field.annotation)), entry.value.data
            if isinstance(data, bool) and bool not in types and types & {int, float}:
                self._tell(entry.value.place, f"{key!r} must be a number, not {described(data)}")
            elif time in types and data is not None and not isinstance(data, str):
                self._tell(entry.value.place, f"{key!r} must be {_MUST_BE['time_type']} (it is {described(data)})")
            for nested in _models(field):
                for each in entry.value.data if isinstance(entry.value.data, list) else [entry.value]:
                    self.refuse_odd_types(nested, each)

    def report(self, details: list[ErrorDetails]) -> None:
        """Unknown keys first, as one may be a slip for a missing key; then the deepest of a union's complaints."""
        for detail in sorted(details, key=lambda each: (each["type"] != "extra_forbidden", -len(each["loc"]))):
            self._report(detail)

    def _report(self, detail: ErrorDetails) -> None:
        keys = [key for key in detail["loc"] if key != "[key]"]
        if detail["type"] == "missing":
            self._report_missing(keys)
            return
        keys, found = _found(self._value, keys)
        inside = any(told[: len(keys)] == tuple(keys) for told in self._told_keys) and keys
        if inside or found.place in self._told or _any_broken(found):
            return
        self._told_keys.append(tuple(keys))
        entry = _entry(self._value, keys)
        if detail["type"] == "extra_forbidden" and entry is not None:
            self._report_unknown(keys, entry)
            return
        secret = any(is_secret(str(key)) for key in keys)
        name = ".".join(map(str, keys))
        self._tell(
            entry.place if entry is not None and "[key]" in detail["loc"] else found.place,
            _sentence(f"{name!r}" if name else self._what, found.data, detail, secret),
        )

    def _tell(self, place: Place, message: str) -> None:
        self._told.add(place)
        self._problems.add(place, message)

    def _report_unknown(self, keys: list[str | int], entry: Entry) -> None:
        parent = _nested(self._model, keys[:-1])
        where = self._what if len(keys) == 1 else f"{'.'.join(map(str, keys[:-1]))} of {self._what}"
        known = _fields(parent) if parent else ()
        if (meant := closest(str(keys[-1]), known)) is not None:
            self._meant.add(meant)
        self._tell(entry.place, f"unknown key {str(keys[-1])!r} in {where}{suggestion(str(keys[-1]), known)}")

    def _report_missing(self, keys: list[str | int]) -> None:
        parent = _nested(self._model, keys[:-1])
        field = _fields(parent).get(str(keys[-1])) if parent else None
        purpose = f": {field.description}" if field and field.description else ""
        found = self._value.at(*keys)
        if found is None:
            if str(keys[-1]) in self._meant:
                return
            _, around = _found(self._value, keys)
            self._tell(around.place, f"{self._what} needs the key {'.'.join(map(str, keys))!r}{purpose}")
        elif not found.broken:
            self._tell(found.place, f"{str(keys[-1])!r} of {self._what} has no value{purpose}")
