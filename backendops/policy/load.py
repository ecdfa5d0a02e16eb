"""Loads a policy: read, expand, bind, pair, check; every problem at once, each with its place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from backendops.contracts.backend import Backend
from backendops.contracts.errors import PolicyError, Problem
from backendops.contracts.job import Job
from backendops.contracts.masking import mask
from backendops.jobs import JOBS
from backendops.policy.bind import bind, described, suggestion
from backendops.policy.checks import faults
from backendops.policy.destinations import with_destinations
from backendops.policy.document import START, Place, Problems, Value, read_document
from backendops.policy.expand import expand
from backendops.policy.model import Http, Pair, Policy, PolicyKeys
from backendops.policy.order import in_order
from backendops.policy.pairing import can_do, class_for_url, given_keys, pair_up
from backendops.policy.schedule import Schedule
from backendops.policy.secrets import secrets_in
from backendops.policy.state import default_state, state_from

VARIABLE: Final = "BACKENDOPS_POLICY"
_PLACES: Final = ("config/policy.yaml", "/etc/backendops/policy.yaml")
# Names are labels of metrics and words of commands.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_UTC: Final = "UTC"


def find_policy(option: str | None) -> Path:
    """The policy file: the option, else $BACKENDOPS_POLICY, else ./config/policy.yaml or /etc/backendops/policy.yaml.

    Raises PolicyError that names every place tried.
    """
    for named in (option, os.environ.get(VARIABLE)):
        if named:
            return Path(named)
    for place in _PLACES:
        if Path(place).is_file():
            return Path(place)
    tried = f"--policy and ${VARIABLE} are not given, {Path(_PLACES[0]).absolute()} and {_PLACES[1]} are not there"
    message = f"no policy found ({tried}): name one with --policy, or write one, from config/policy.yaml of the sources"
    raise PolicyError([Problem(_PLACES[0], START.line, START.column, message)])


def load_policy(path: Path | str) -> Policy:
    """The policy in a file, checked as a whole; raises PolicyError with every problem."""
    problems = Problems(str(path))
    document = read_document(Path(path), problems)
    if document is None:
        raise PolicyError(list(problems))
    document = expand(document, problems)
    policy = _Loading(document, problems).policy()
    if policy is None:
        secrets = frozenset(secrets_in(document))
        raise PolicyError([Problem(p.file, p.line, p.column, mask(p.message, secrets)) for p in problems])
    return policy


class _Loading:
    """One policy on its way from YAML to objects; what is wrong goes to `problems` and the rest goes on."""

    def __init__(self, document: Value, problems: Problems) -> None:
        self._document = document
        self._problems = problems
        self._classes: dict[str, type[Backend] | None] = {}
        """The class of each backend that the policy names; None where its URL did not say."""
        self._backends: dict[str, Backend] = {}
        self._kinds: dict[str, type[Job]] = {}
        self._jobs: dict[str, Job] = {}
        self._schedules: dict[str, Schedule] = {}

    def policy(self) -> Policy | None:
        if not isinstance(self._document.data, dict):
            if not self._document.broken:
                what = described(self._document.data, secret=True)
                self._problems.add(
                    self._document.place, f"a policy is a mapping with version, backends and jobs, not {what}"
                )
            return None
        self._unknown_keys()
        self._version()
        zone = self._timezone()
        state = self._state()
        http = bind(Http, self._document.at("http") or Value(START, None), self._problems, "http")
        self._bind_backends()
        self._bind_jobs(zone)
        on = {name: self._backends_of(name) for name in self._kinds}
        for fault in faults(self._jobs, self._backends, on):
            self._problems.add(self._place(*fault.keys), fault.message)
        sent = with_destinations(self._jobs, self._classes, self._backends, on, self._document, self._problems)
        if len(self._problems) or http is None:
            return None
        return Policy(
            file=self._problems.file,
            timezone=zone,
            state=state,
            http=http,
            backends=self._backends,
            jobs=self._jobs,
            pairs=tuple(self._pairs(on, sent)),
            secrets=frozenset(secrets_in(self._document)),
        )

    def _place(self, *keys: str | int) -> Place:
        """Of the key's value, or of the nearest one around it."""
        for depth in range(len(keys), 0, -1):
            if (found := self._document.at(*keys[:depth])) is not None:
                return found.place
        return self._document.place

    def _unknown_keys(self) -> None:
        assert isinstance(self._document.data, dict)  # noqa: S101 - policy() has made sure
        for key, entry in self._document.data.items():
            if key not in PolicyKeys.model_fields:
                self._problems.add(entry.place, f"unknown key {key!r}{suggestion(key, PolicyKeys.model_fields)}")

    def _version(self) -> None:
        version = self._document.at("version")
        if version is None:
            self._problems.add(
                self._document.place, "the policy needs the key 'version': write `version: 1` at its top"
            )
        elif not version.broken and (version.data != 1 or isinstance(version.data, bool)):
            self._problems.add(
                version.place, f"version {described(version.data)} is not one this backendops reads: write 1"
            )

    def _timezone(self) -> ZoneInfo:
        value = self._document.at("timezone")
        if value is None or value.broken or value.data is None:
            return ZoneInfo(_UTC)
        try:
            return ZoneInfo(value.data if isinstance(value.data, str) else "")
        except (KeyError, ValueError, OSError):
            hint = suggestion(value.data, _zones()) if isinstance(value.data, str) else ""
            hint = hint if "mean" in hint else ": write one such as UTC or Europe/Berlin"
            self._problems.add(value.place, f"{described(value.data)} is not a time zone{hint}")
            return ZoneInfo(_UTC)

    def _state(self) -> str:
        value = self._document.at("state")
        if value is None or value.data is None or value.broken:
            return default_state()
        if not isinstance(value.data, str):
            shown = described(value.data)
            self._problems.add(value.place, f"state must be a directory or a SQLAlchemy URL, not {shown}")
            return default_state()
        try:
            return state_from(value.data, Path(self._problems.file).parent)
        except ValueError as error:
            self._problems.add(value.place, str(error))
            return default_state()

    def _section(self, key: str, purpose: str) -> Iterator[tuple[str, Value]]:
        """The named entries of `backends` or `jobs`; none where the section is missing, which is a problem."""
        section = self._document.at(key)
        if section is None or section.data is None or section.data == {}:
            if section is None or not section.broken:
                self._problems.add(
                    section.place if section else self._document.place, f"the policy has no {key}: {purpose}"
                )
            return
        if not isinstance(section.data, dict):
            if not section.broken:
                what = described(section.data)
                self._problems.add(
                    section.place, f"{key} must be a mapping of names to settings, not {what}: {purpose}"
                )
            return
        for name, entry in section.data.items():
            if not _NAME.fullmatch(name):
                self._problems.add(
                    entry.place, f"{name!r} is no name: use up to 63 letters, digits, '_', '-' and '.', a letter first"
                )
            yield name, entry.value

    def _bind_backends(self) -> None:
        for name, value in self._section("backends", "name at least one result store and its url"):
            self._classes[name] = None
            what = f"backend {name!r}"
            url = value.at("url")
            if value.broken:
                continue
            if not isinstance(value.data, dict) or url is None or not isinstance(url.data, str):
                bind(_UrlOnly, value, self._problems, what)
                continue
            try:
                kind = class_for_url(url.data)
            except ValueError as error:
                # Of a URL with an unset variable, the scheme may still be there to read.
                if not url.broken:
                    self._problems.add(url.place, f"{what}: {error}")
                continue
            self._classes[name] = kind
            if extra := kind.missing_driver():
                self._problems.add(url.place, f"{what}: its driver is not installed: pip install 'backendops[{extra}]'")
            if (backend := bind(kind, value, self._problems, what)) is not None:
                self._backends[name] = backend

    def _bind_jobs(self, zone: ZoneInfo) -> None:
        for name, value in self._section("jobs", f"there is {', '.join(JOBS)}"):
            if value.broken:
                continue
            kind = self._kind(name, value)
            if kind is None:
                continue
            self._kinds[name] = kind
            if (job := bind(kind, value, self._problems, f"job {name!r}")) is not None:
                self._jobs[name] = job
            self._schedule(name, value, zone)

    def _kind(self, name: str, value: Value) -> type[Job] | None:
        given = value.at("kind")
        if given is not None and given.broken:
            return None
        if given is None or given.data is None:
            if name not in JOBS:
                self._problems.add(
                    self._key_place("jobs", name),
                    f"unknown job {name!r}{suggestion(name, JOBS)} (a job of another name says its `kind:`)",
                )
            return JOBS.get(name)
        if not isinstance(given.data, str) or given.data not in JOBS:
            hint = suggestion(given.data, JOBS) if isinstance(given.data, str) else f": there is {', '.join(JOBS)}"
            self._problems.add(given.place, f"job {name!r}: unknown kind {described(given.data)}{hint}")
            return None
        return JOBS[given.data]

    def _key_place(self, section: str, name: str) -> Place:
        parent = self._document.at(section)
        assert parent is not None  # noqa: S101 - the name came out of it
        assert isinstance(parent.data, dict)  # noqa: S101 - as above
        return parent.data[name].place

    def _schedule(self, name: str, value: Value, zone: ZoneInfo) -> None:
        given = value.at("schedule")
        if given is None or given.broken or not isinstance(given.data, str):
            return
        try:
            self._schedules[name] = Schedule.parse(given.data, zone)
        except ValueError as error:
            self._problems.add(given.place, f"job {name!r}: {error}")

    def _backends_of(self, name: str) -> tuple[str, ...]:
        entry, job = self._document.at("jobs", name), self._kinds[name]
        assert entry is not None  # noqa: S101 - its kind came out of it
        keys = given_keys(entry)
        if "backend" in keys:
            return pair_up(name, job, entry, self._classes, self._problems)
        elsewhere = entry.at("to", "backend")
        able = tuple(
            backend
            for backend, kind in self._classes.items()
            # What keeps the archive is not archived to itself.
            if kind is not None and can_do(kind, job, keys) and (elsewhere is None or elsewhere.data != backend)
        )
        if not able and self._classes and None not in self._classes.values():
            self._problems.add(
                self._key_place("jobs", name), f"job {name!r} has nowhere to run: none of the backends can do it"
            )
        return able

    def _pairs(self, on: Mapping[str, tuple[str, ...]], sent: Mapping[tuple[str, str], Job]) -> Iterator[Pair]:
        for name, written in self._jobs.items():
            for backend in on[name]:
                beside = {other: self._jobs[other] for other in self._jobs if backend in on[other]}
                job = in_order(name, sent.get((name, backend), written), self._backends[backend], beside)
                yield Pair(name, job, backend, self._backends[backend], self._schedules.get(name))


class _UrlOnly(BaseModel):
    """Stands for a backend whose class is unknown: all that can be said of it is about its url."""

    model_config = ConfigDict(extra="ignore")

    url: SecretStr = Field(description="any Celery result_backend URL, such as db+postgresql://... or redis://...")


@cache
def _zones() -> tuple[str, ...]:
    return tuple(sorted(available_timezones()))
