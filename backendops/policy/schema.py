"""The JSON Schema of a whole policy, put together from the models that also validate it."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from backendops.backends import BACKENDS
from backendops.jobs import JOBS
from backendops.policy.model import PolicyKeys

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
# Whatever a variable holds is known only where the policy runs.
_VARIABLE: Final = {"type": "string", "pattern": r"\$\{.+\}", "description": "Filled in from ${VAR} or ${file:/path}."}
_NAME: Final = {"pattern": r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"}


def policy_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, for editors and other checkers; `validate` knows more than a schema can say."""
    models: list[type[BaseModel]] = [PolicyKeys, *JOBS.values(), *BACKENDS]
    references, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/$defs/{model}"
    )
    defs: dict[str, Any] = {name: _open_to_variables(schema) for name, schema in definitions["$defs"].items()}
    reference = {model: references[model, "validation"]["$ref"] for model in models}
    top = defs.pop(reference[PolicyKeys].rpartition("/")[2])
    kinds = {kind: reference[job] for kind, job in JOBS.items()}
    top["properties"]["version"] = {"const": 1, "description": PolicyKeys.model_fields["version"].description}
    top["properties"]["backends"] |= {
        "type": "object",
        "minProperties": 1,
        "propertyNames": _NAME,
        # A URL may come out of a variable, so its scheme cannot choose for an editor.
        "additionalProperties": {"anyOf": [{"$ref": reference[backend]} for backend in BACKENDS]},
    }
    top["properties"]["jobs"] |= {
        "type": "object",
        "minProperties": 1,
        "propertyNames": _NAME,
        "properties": {kind: _job_named(kind, ref, kinds) for kind, ref in kinds.items()},
        "additionalProperties": {"required": ["kind"], **_job_of_its_kind(kinds)},
    }
    top["required"] = ["version", "backends", "jobs"]
    return {"$schema": DIALECT, "title": "backendops policy", **_without_title(top), "$defs": defs}


def _job_of_its_kind(kinds: dict[str, str]) -> dict[str, Any]:
    """An entry that says its `kind:`; if-then, so that an editor complains of the one kind that is meant."""
    return {
        "type": "object",
        "properties": {"kind": {"enum": list(kinds)}},
        "allOf": [
            {"if": {"required": ["kind"], "properties": {"kind": {"const": kind}}}, "then": {"$ref": reference}}
            for kind, reference in kinds.items()
        ],
    }


def _job_named(kind: str, reference: str, kinds: dict[str, str]) -> dict[str, Any]:
    """An entry whose name is its kind, unless it says another; empty, where no key is needed."""
    entry = {"if": {"required": ["kind"]}, "then": _job_of_its_kind(kinds), "else": {"$ref": reference}}
    needs_a_key = any(field.is_required() for field in JOBS[kind].model_fields.values())
    return entry if needs_a_key else {"if": {"type": "null"}, "else": entry}


def _without_title(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in {"title", "description"}}


def _open_to_variables(schema: Any) -> Any:
    """A number or a boolean may also be written as `${VAR}`."""
    if isinstance(schema, list):
        return [_open_to_variables(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    opened = {key: _open_to_variables(value) for key, value in schema.items()}
    if opened.get("type") in ("integer", "number", "boolean"):
        outside = {key: opened.pop(key) for key in ("default", "description", "title") if key in opened}
        return {"anyOf": [opened, _VARIABLE], **outside}
    return opened
