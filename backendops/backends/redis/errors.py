"""What the server and the driver raise, in an operator's words; nowhere else are redis-py's errors known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis.exceptions as driver
from redis.sentinel import MasterNotFoundError

from backendops.contracts.errors import BackendBusy, BackendError, BackendRefused, BackendUnreachable

# Every command backendops sends; the keys are the results' own and the lock's.
ACL_COMMANDS: Final = (
    "+ping +info +time +select +client|setname +client|setinfo +client|list +client|no-touch +config|get "
    "+scan +dbsize +pttl +type +strlen +get +getrange +exists +set +pexpire +unlink +object|idletime +object|refcount "
    "+memory|usage +pubsub|channels +pubsub|numpat +eval +evalsha +script|load +watch +multi +exec +unwatch"
)

# It refuses a line with a word that it does not know; 6.2 takes any.
NOT_IN_7_0: Final = ("+client|setinfo", "+client|no-touch")


def acl_line(username: str | None, prefix: str) -> str:
    """The ACL SETUSER line that allows all backendops does, and nothing else."""
    name = username or "default"
    keys = f"~{prefix}celery-task-meta-* ~{prefix}celery-taskset-meta-* ~{prefix}backendops:*"
    return f"ACL SETUSER {name} {keys} {ACL_COMMANDS}"


@contextmanager
def translated(address: str, acl: str) -> Iterator[None]:
    """Raise BackendError for whatever redis-py raises inside; `acl` is the line that would allow everything."""
    try:
        yield
    except (driver.RedisError, OSError) as error:
        raise translate(error, address, acl) from error


_CLUSTER: Final = (
    BackendRefused,
    "{address} is a node of a Redis Cluster",
    "Celery cannot keep results in a cluster: use a standalone server or Sentinel; `cluster: true` lets backendops "
    "look at every master of it",
)

# By the word that Redis begins an error with; redis-py takes some of these words away again.
_WORDS: Final[dict[str, tuple[type[BackendError], str, str]]] = {
    "LOADING": (
        BackendBusy,
        "{address} is loading its data into memory",
        "it answers when it has finished; INFO persistence says how long that takes",
    ),
    "BUSY": (
        BackendBusy,
        "{address} is busy with somebody's script",
        "wait for it, or end it with SCRIPT KILL; SLOWLOG GET names it",
    ),
    "MASTERDOWN": (
        BackendBusy,
        "{address} is a replica that has lost its master",
        "wait for the failover, or name the new master in the URL (sentinel:// follows it by itself)",
    ),
    "CLUSTERDOWN": (
        BackendBusy,
        "the cluster at {address} is down",
        "CLUSTER INFO and CLUSTER NODES say which slots have no node",
    ),
    "TRYAGAIN": (BackendBusy, "{address} is moving slots between nodes", "try again when the move is done"),
    "READONLY": (
        BackendBusy,
        "{address} has become a read-only replica",
        "after a failover, name the new master in the URL, or use sentinel:// with master_name, which follows it",
    ),
    "NOREPLICAS": (
        BackendBusy,
        "{address} refuses writes: too few of its replicas are connected",
        "bring the replicas back, or lower min-replicas-to-write",
    ),
    "OOM": (
        BackendRefused,
        "{address} refuses writes: its memory is at maxmemory",
        "raise maxmemory, or give results an expiry: the expire job does so even now",
    ),
    "MISCONF": (
        BackendRefused,
        "{address} refuses writes: its last snapshot or append-only write failed",
        "free disk space or mend its directory (its log says which), then BGSAVE",
    ),
    "DENIED": (
        BackendRefused,
        "{address} is in protected mode and refuses connections from other hosts",
        "give it a password (requirepass or an ACL user) or bind it to the right address",
    ),
    "MOVED": _CLUSTER,
    "ASK": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
}  # fmt: skip

# redis-py's classes for the words it takes away where it has no status_code (before 7.0).
_CLASSES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (driver.BusyLoadingError, "LOADING"),
    (driver.ReadOnlyError, "READONLY"),
    (driver.OutOfMemoryError, "OOM"),
    (driver.MasterDownError, "MASTERDOWN"),
    (driver.ClusterDownError, "CLUSTERDOWN"),
    (driver.TryAgainError, "TRYAGAIN"),
    (driver.AskError, "ASK"),  # a MovedError is an AskError
    (driver.ClusterCrossSlotError, "CROSSSLOT"),
)

# The same refusals told from inside a script, where some servers put the word in the middle of the text.
_IN_SCRIPT: Final = re.compile(r"-(OOM|READONLY|MISCONF|NOREPLICAS|LOADING|MASTERDOWN) ")
_WHERE_IN_SCRIPT: Final = re.compile(r" script: (?:[0-9a-f]{40},)? ?on @.*")
_FORBIDDEN_IN_SCRIPT: Final = re.compile(
    "ACL failure in script|can't run this command|can't access at least one|NOPERM"
)


# What has no word of its own, by what its text says.
_TEXTS: Final[tuple[tuple[str, type[BackendError], str, str], ...]] = (
    (
        "max number of clients",
        BackendBusy,
        "{address} has no connection left: maxclients is reached",
        "raise maxclients, or find who holds them: CLIENT LIST names every client",
    ),
    (
        "db index is out of range",
        BackendRefused,
        "{address} has no such database",
        "use a lower number after the slash, or raise `databases`",
    ),
    ("select is not allowed in cluster mode", *_CLUSTER),
    (
        "unknown command",
        BackendRefused,
        "{address} does not know a command that backendops needs: {text}",
        "Redis 6.2 or Valkey 7.2 and newer have them all; a rename-command in its configuration takes one away",
    ),
)


def translate(error: Exception, address: str, acl: str) -> BackendError:
    """The BackendError for one error of redis-py or of a socket."""
    text = _plain(error)
    if isinstance(error, driver.NoPermissionError) or _FORBIDDEN_IN_SCRIPT.search(str(error)):
        return BackendRefused(
            f"{address} does not permit its user to do this: {text}",
            f"allow it: {acl} (Redis 7.0 does not know {' and '.join(NOT_IN_7_0)}: leave them out there)",
        )
    if isinstance(error, driver.AuthenticationError | driver.AuthenticationWrongNumberOfArgsError) or _login(text):
        return _login_refused(address, text)
    if known := _WORDS.get(_word(error, text)) or _told(text):
        kind, sentence, hint = known
        return kind(sentence.format(address=address, text=text), hint)
    return _lost(error, address, text)


def _told(text: str) -> tuple[type[BackendError], str, str] | None:
    for words, kind, sentence, hint in _TEXTS:
        if words in text.lower():
            return kind, sentence, hint
    return None


def _lost(error: Exception, address: str, text: str) -> BackendError:
    if isinstance(error, driver.TimeoutError | TimeoutError):
        return BackendUnreachable(
            f"{address} did not answer in time: {text}",
            "is the host reachable, and is the server not held by a slow command (SLOWLOG GET)?",
        )
    if isinstance(error, driver.ConnectionError | OSError):
        # A server that wants a client's certificate and gets none just hangs up.
        tls = ", is its certificate signed by ssl_ca_certs, and does it want the client's (ssl_certfile, ssl_keyfile)"
        return BackendUnreachable(
            f"{address} cannot be reached: {text}",
            "is the server running, are host, port and scheme (redis:// or rediss://) right"
            f"{tls if address.startswith('rediss:') else ''}?",
        )
    return BackendError(f"{address} answered with an error: {text}")


def _plain(error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, MasterNotFoundError):
        # redis-py goes on with every object it made on the way.
        said = said.partition(" : <")[0]
    # Servers add the script's hash and line to what went wrong inside it, which helps nobody.
    return _WHERE_IN_SCRIPT.sub("", said).removeprefix("ACL failure in script: ").rstrip(".")


def _login(text: str) -> bool:
    return any(word in text for word in ("NOAUTH", "WRONGPASS", "AUTH <password> called", "Client sent AUTH"))


def _login_refused(address: str, text: str) -> BackendError:
    if "without any password" in text or "Client sent AUTH" in text or "no password is set" in text:
        return BackendRefused(
            f"{address} has no password, and the URL gives one",
            "take the password out of the URL, or set it on the server (requirepass or ACL SETUSER)",
        )
    return BackendRefused(
        f"{address} refused the login: {text}",
        "give the right user and password in the URL: redis://USER:${PASSWORD}@host:6379/0, or without a user "
        "redis://:${PASSWORD}@host:6379/0",
    )


def _word(error: Exception, text: str) -> str:
    for kind, word in _CLASSES:
        if isinstance(error, kind):
            return word
    first = text.split(" ", 1)[0]
    if first in _WORDS:
        return first
    inside = _IN_SCRIPT.search(text)
    return inside[1] if inside else ""
