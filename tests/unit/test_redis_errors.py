"""What redis-py raises, in an operator's words; those that no test server can be brought to, by their text."""

from __future__ import annotations

import pytest
from redis import exceptions as driver
from redis._parsers.base import BaseParser
from redis.sentinel import MasterNotFoundError

from backendops.backends.redis.errors import translate, translated
from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused, BackendUnreachable


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ("LOADING Redis is loading the dataset in memory", BackendBusy, "is loading its data"),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL", BackendBusy, "somebody's script"),
        (
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            BackendBusy,
            "lost its master",
        ),
        ("CLUSTERDOWN The cluster is down", BackendBusy, "cluster at cache is down"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", BackendBusy, "moving slots"),
        ("READONLY You can't write against a read only replica.", BackendBusy, "read-only replica"),
        (
            "READONLY You can't write against a read only replica. script: abc, on @user_script:3.",
            BackendBusy,
            "read-only",
        ),
        ("NOREPLICAS Not enough good replicas to write.", BackendBusy, "too few of its replicas"),
        ("OOM command not allowed when used memory > 'maxmemory'.", BackendRefused, "at maxmemory"),
        (
            "ERR Error running script: -OOM command not allowed when used memory > 'maxmemory'.",
            BackendRefused,
            "maxmemory",
        ),
        ("MISCONF Errors writing to the AOF file: No space left on device", BackendRefused, "append-only write failed"),
        ("DENIED Redis is running in protected mode because", BackendRefused, "protected mode"),
        ("MOVED 14052 127.0.0.1:43802", BackendRefused, "Redis Cluster"),
        ("CROSSSLOT Keys in request don't hash to the same slot", BackendRefused, "Redis Cluster"),
        ("ASK 14052 127.0.0.1:43802", BackendRefused, "Redis Cluster"),
        ("NOAUTH Authentication required.", BackendRefused, "refused the login"),
        ("WRONGPASS invalid username-password pair or user is disabled.", BackendRefused, "refused the login"),
        (
            "ERR AUTH <password> called without any password configured for the default user.",
            BackendRefused,
            "no password",
        ),
        ("NOPERM User x has no permissions to run the 'info' command", BackendRefused, "does not permit"),
        (
            "ERR The user executing the script can't run this command or subcommand script: a",
            BackendRefused,
            "not permit",
        ),
        ("ERR max number of clients reached", BackendBusy, "maxclients"),
        ("ERR DB index is out of range", BackendRefused, "no such database"),
        ("ERR unknown command 'EVALSHA', with args beginning with: ", BackendRefused, "does not know a command"),
        ("ERR something else", BackendError, "something else"),
    ],
)
def test_each_answer_has_its_word(answer: str, kind: type[BackendError], words: str) -> None:
    # As redis-py's own parser makes it.
    error = translate(BaseParser.parse_error(answer), "cache", "ACL SETUSER x +all")
    assert type(error) is kind
    assert words in str(error)
    assert error.hint or kind is BackendError
    assert "@user_script" not in str(error)


@pytest.mark.parametrize(
    "error",
    [
        driver.ConnectionError("Connection refused"),
        driver.TimeoutError("Timeout"),
        TimeoutError("t"),
        OSError(111, "no"),
    ],
)
def test_a_lost_connection_is_unreachable(error: Exception) -> None:
    with pytest.raises(BackendUnreachable) as raised, translated("cache", ""):
        raise error
    assert raised.value.hint


def test_a_fault_of_ours_is_not_the_backends() -> None:
    with pytest.raises(KeyError), translated("cache", ""):
        raise KeyError("a fault")


def test_a_master_that_no_sentinel_knows_is_told_without_the_drivers_objects() -> None:
    error = MasterNotFoundError("No master found for 'results' : <redis.client.Redis(<redis.connection.Connection(db=0")
    with pytest.raises(BackendUnreachable) as raised, translated("sentinel://s/0", ""):
        raise error
    assert str(raised.value) == "sentinel://s/0 cannot be reached: No master found for 'results'"
