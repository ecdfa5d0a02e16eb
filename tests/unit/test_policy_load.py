"""What a good policy becomes, where it is looked for, and ten mistakes at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from celery.app.backends import BACKEND_ALIASES

from backendops.backends import BACKENDS
from backendops.contracts.backend import Backend, Lock, Standing
from backendops.contracts.capabilities import CanReportPool, PoolReport
from backendops.contracts.errors import PolicyError
from backendops.contracts.run import Limits, Watermarks
from backendops.contracts.units import Duration
from backendops.jobs.expire import Expire
from backendops.policy import pairing
from backendops.policy.load import find_policy, load_policy
from backendops.policy.state import default_state


@pytest.fixture
def load(tmp_path):
    def loaded(text: str):
        path = tmp_path / "policy.yaml"
        path.write_text(text, encoding="utf-8")
        return load_policy(path)

    return loaded


GOOD = """\
version: 1
timezone: Europe/Berlin
state: state
http: {listen: "[::]:9920", username: prometheus, password: open sesame}
backends:
  results:
    url: db+postgresql://celery@localhost/celery
    tables: {task: my_tasks}
    result_expires: 30d
  cache: {url: "redis://localhost:6379/0"}
jobs:
  expire:
    backend: [cache, results]
    schedule: every 15m
    keep: 30d
    keep_by_state: {FAILURE: 13 months, MY_OWN: forever}
  nightly: {kind: archive, schedule: "15 2 * * *", older_than: 7d, time_budget: 20m}
  vacuum:
  pool-health: {schedule: null}
"""


def test_a_good_policy(load, tmp_path):
    policy = load(GOOD)

    assert policy.file == str(tmp_path / "policy.yaml")
    assert str(policy.timezone) == "Europe/Berlin"
    assert policy.state == str(tmp_path / "state")
    assert (policy.http.host, policy.http.port) == ("::", 9920)
    assert [str(pair) for pair in policy.pairs] == [
        "expire on cache",
        "expire on results",
        "nightly on results",
        "vacuum on results",
        "pool-health on results",
        "pool-health on cache",
    ]
    expire = policy.jobs["expire"]
    assert isinstance(expire, Expire)
    assert expire.keep_by_state["FAILURE"] == Duration(months=13)
    assert policy.backends["results"].table_names() == ("my_tasks", "celery_tasksetmeta")
    nightly = policy.pairs_of("nightly")[0]
    assert nightly.job.kind_name == "archive"
    assert nightly.job.time_budget == timedelta(minutes=20)
    assert nightly.schedule is not None
    # 02:15 in Berlin in summer.
    assert nightly.schedule.next_after(datetime(2026, 7, 1, tzinfo=UTC)) == datetime(2026, 7, 1, 0, 15, tzinfo=UTC)
    assert policy.pairs_of("vacuum")[0].schedule is None
    assert policy.pairs_of("nothing") == ()
    assert policy.secrets == {"open sesame"}


MISTAKES = """\
version: 1
timezone: Europe/Berln
http: {listen: 9919}
backends:
  results:
    url: db+postgresql://celery:${DB_PASSWORD}@localhost/celery
    result_expire: 30d
  cache: {url: reddis://localhost:6379/0}
jobs:
  expire:
    schedule: every 0s
    keep: 1:30
  archive:
    older_then: 7d
    schedule: "0 0 31 2 *"
  archive: {older_than: 7d}
  vacum: {backend: results}
  redis-memory: {backend: results}
"""
PROBLEMS = """\
policy.yaml:2:11: 'Europe/Berln' is not a time zone, did you mean 'Europe/Berlin'?
policy.yaml:3:16: 'listen': 9919 is not an address and a port: write 127.0.0.1:9919, or [::]:9919 for all
policy.yaml:6:10: the environment variable DB_PASSWORD is not set: set it, or write ${DB_PASSWORD:-default}
policy.yaml:7:5: unknown key 'result_expire' in backend 'results', did you mean 'result_expires'?
policy.yaml:8:16: backend 'cache': unknown scheme 'reddis', did you mean 'redis'?
policy.yaml:11:15: job 'expire': '0s' is no time at all: write a number and a unit, such as 30s, 15m, 6h, 7d, 2w or \
13 months (to keep results, say forever)
policy.yaml:12:11: 1:30 is a base-60 number to some YAML readers: quote it, or write a duration such as 90s or 15m
policy.yaml:14:5: unknown key 'older_then' in job 'archive', did you mean 'older_than'?
policy.yaml:15:15: job 'archive': '0 0 31 2 *' never fires: no such month has a day 31
policy.yaml:16:3: 'archive' is given twice, first at line 13, column 3: remove one
policy.yaml:17:3: unknown job 'vacum', did you mean 'vacuum'? (a job of another name says its `kind:`)
policy.yaml:18:27: job 'redis-memory' cannot run on 'results': a postgresql backend has no redis-memory; \
it can: expire, archive, partition, vacuum, pool-health
"""


def test_twelve_mistakes_are_twelve_problems(load, tmp_path, monkeypatch):
    monkeypatch.delenv("DB_PASSWORD", raising=False)
    with pytest.raises(PolicyError) as error:
        load(MISTAKES)

    assert error.value.exit_code == 2
    assert str(error.value).replace(f"{tmp_path}/", "") == PROBLEMS.rstrip()


def test_a_backend_with_a_problem_does_not_make_its_jobs_problems(load):
    with pytest.raises(PolicyError) as error:
        load("version: 1\nbackends: {a: {url: ftp://h}}\njobs: {expire: {backend: a, keep: 3d}, vacuum: {}}\n")
    assert len(error.value.problems) == 1


class Toy(Backend, CanReportPool):
    """A backend of one ability, whose driver nobody has."""

    kind: ClassVar[str] = "toy"
    schemes: ClassVar[tuple[str, ...]] = ("toy", "toy+tls")
    driver: ClassVar[tuple[str, str]] = ("a_driver_that_nobody_has", "toys")

    @property
    def display_url(self) -> str:
        return "toy://"

    def open(self, limits: Limits, watermarks: Watermarks) -> AbstractContextManager[Toy]:
        raise NotImplementedError

    def standing(self) -> Standing:
        raise NotImplementedError

    def lock(self) -> AbstractContextManager[Lock | None]:
        raise NotImplementedError

    def report_pool(self) -> PoolReport:
        raise NotImplementedError


@pytest.fixture
def toys(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(pairing, "BACKENDS", (*BACKENDS, Toy))
    yield


def test_a_missing_driver_names_the_extra(load, toys):
    with pytest.raises(PolicyError) as error:
        load("version: 1\nbackends: {t: {url: toy://h}}\njobs: {pool-health: }\n")
    assert [problem.message for problem in error.value.problems] == [
        "backend 't': its driver is not installed: pip install 'backendops[toys]'"
    ]


def test_a_driver_in_the_url_does_not_change_the_backend(load, toys, monkeypatch):
    monkeypatch.setattr(Toy, "driver", ("", ""))
    policy = load("version: 1\nbackends: {t: {url: TOY+tls://h}, u: {url: toy+other://h}}\njobs: {pool-health: }\n")
    assert {type(backend) for backend in policy.backends.values()} == {Toy}


def test_a_job_says_what_its_backend_can_do_instead(load, toys, monkeypatch):
    monkeypatch.setattr(Toy, "driver", ("", ""))
    with pytest.raises(
        PolicyError, match="'vacuum' cannot run on 't': a toy backend has no vacuum; it can: pool-health"
    ):
        load("version: 1\nbackends: {t: {url: toy://h}}\njobs: {vacuum: {backend: t}}\n")


def test_every_scheme_of_celery_is_known_or_said_to_be_unsupported():
    for scheme in BACKEND_ALIASES:
        try:
            assert issubclass(pairing.class_for_url(f"{scheme}://h"), Backend)
        except ValueError as error:
            assert "backendops does not support Celery's" in str(error)


@pytest.mark.parametrize(
    ("keep", "older_than"), [("2 months", "1 month"), ("13 months", "12 months"), ("1 year", "11 months"), ("8d", "7d")]
)
def test_keep_that_is_long_enough(load, keep, older_than):
    load(
        "version: 1\nbackends: {r: {url: db+postgresql://h/d}}\n"
        f"jobs: {{expire: {{keep: {keep}}}, archive: {{older_than: {older_than}}}}}\n"
    )


def test_expire_and_archive_on_different_backends_do_not_meet(load):
    load(
        "version: 1\nbackends: {r: {url: db+postgresql://h/d}, c: {url: redis://h}}\n"
        "jobs: {expire: {keep: 1d, backend: c}, archive: {older_than: 7d, backend: r}}\n"
    )


def test_windows_line_ends_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert len(load_policy(path).pairs) == 6


def test_a_file_that_cannot_be_read(tmp_path):
    def message(path):
        with pytest.raises(PolicyError) as error:
            load_policy(path)
        (problem,) = error.value.problems
        return f"{problem.line}:{problem.column}: {problem.message}"

    assert message(tmp_path / "none.yaml").startswith("1:1: there is no such file: write it, from config/policy.yaml")
    assert message(tmp_path).startswith("1:1: this is a directory")
    assert message("a\0b").startswith("1:1: this file cannot be read")
    assert message("x" * 5000).startswith("1:1: this file cannot be read: File name too long")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"version: 1\n# caf\xe9\n")
    assert message(latin) == "2:6: this file is not UTF-8 from here on: save it as UTF-8"
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (2 * 1024 * 1024 + 1))
    assert message(large).startswith("1:1: this file is over 2 MiB")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, whom no file's mode keeps out.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PolicyError, match="may not be read by the user"):
        load_policy(tmp_path / "policy.yaml")


def test_where_the_policy_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BACKENDOPS_POLICY", raising=False)
    if not Path("/etc/backendops/policy.yaml").exists():
        with pytest.raises(PolicyError) as error:
            find_policy(None)
        for tried in (
            "--policy",
            "$BACKENDOPS_POLICY",
            f"{tmp_path}/config/policy.yaml",
            "/etc/backendops/policy.yaml",
        ):
            assert tried in str(error.value)
    (tmp_path / "config").mkdir()
    (tmp_path / "config/policy.yaml").write_text(GOOD)
    assert find_policy(None) == Path("config/policy.yaml")
    monkeypatch.setenv("BACKENDOPS_POLICY", "/some/where.yaml")
    assert find_policy(None) == Path("/some/where.yaml")
    assert find_policy("mine.yaml") == Path("mine.yaml")


def test_where_state_is_kept(load, tmp_path):
    assert default_state({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == "/var/lib/a"
    writable = os.access("/var/lib", os.W_OK) or os.access("/var/lib/backendops", os.W_OK)
    assert default_state({"HOME": "/home/me"}) == (
        "/var/lib/backendops" if writable else "/home/me/.local/state/backendops"
    )
    rest = "backends: {c: {url: redis://h}}\njobs: {pool-health: }\n"
    assert load(f"version: 1\nstate: /a/b\n{rest}").state == "/a/b"
    assert load(f"version: 1\nstate: ../b\n{rest}").state == str(tmp_path / "../b")
    assert load(f"version: 1\nstate: ~/b\n{rest}").state == str(Path("~/b").expanduser())
    shared = load(f"version: 1\nstate: db+postgresql://u:pa55w@h/d\n{rest}")
    assert shared.state == "postgresql+psycopg2://u:pa55w@h/d"
    assert shared.secrets == {"pa55w"}
