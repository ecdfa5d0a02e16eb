"""Fleets of private servers for the tests: three nodes with three sentinels, and a cluster of six nodes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import redis

from backendops import embedded
from tests.servers import quiet_port

MASTER = "results"


class SentinelServer(embedded.ValkeyServer):
    """The same binary as a sentinel."""

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        # A sentinel writes what it learns into its file.
        config = self.directory / "sentinel.conf"
        config.write_text("\n".join([f"bind {self.host}", f"port {self.port}", *self.settings]) + "\n")
        return subprocess.Popen(
            [*embedded.dying_with_parent("TERM"), self.binary, config, "--sentinel"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.directory,
            start_new_session=True,
        )


def until(what: Callable[[], Any], seconds: float = 20) -> Any:
    """The first true answer; whatever the driver raises meanwhile is not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if answer := what():
                return answer
        except redis.RedisError as error:
            last: object = error
        else:
            last = answer
        assert time.monotonic() < deadline, f"it did not happen in time: {last!r}"
        time.sleep(0.02)


@dataclass
class Guarded:
    """A master, its replicas, and the sentinels that watch them."""

    nodes: list[embedded.ValkeyServer]
    sentinels: list[embedded.ValkeyServer]
    clients: dict[int, redis.Redis] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return ";".join(f"sentinel://{sentinel.host}:{sentinel.port}/0" for sentinel in self.sentinels)

    def client(self, server: embedded.Server) -> redis.Redis:
        return self.clients.setdefault(server.port, redis.Redis(port=server.port))

    def master_port(self) -> int:
        """The master's port, as the first sentinel names it."""
        _, port = self.client(self.sentinels[0]).execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return int(port)

    @property
    def master(self) -> embedded.ValkeyServer:
        port = self.master_port()
        return next(node for node in self.nodes if node.port == port)

    def until_whole(self) -> None:
        """Wait until the sentinels know each other and the replicas, and those have all that the master has."""

        def whole() -> bool:
            replicas = self.client(self.master).info("replication").get("connected_slaves")
            known = [self.client(sentinel).info("sentinel")["master0"] for sentinel in self.sentinels]
            return replicas == len(self.nodes) - 1 and all(
                one["slaves"] == replicas and one["sentinels"] == len(self.sentinels) and one["status"] == "ok"
                for one in known
            )

        until(whole)

    def fail_over(self) -> None:
        """Let the sentinels make another node the master, and wait for it."""
        before = self.master_port()
        until(lambda: self.client(self.sentinels[0]).execute_command("SENTINEL", "FAILOVER", MASTER))
        until(lambda: self.master_port() != before)


@contextmanager
def guarded(directory: Path, settings: Sequence[str] = ()) -> Iterator[Guarded]:
    """Three nodes and three sentinels that find a dead master after half a second."""
    with ExitStack() as running:

        def start(server: embedded.ValkeyServer) -> embedded.ValkeyServer:
            server.directory.mkdir(parents=True, exist_ok=True)
            server.start()
            running.callback(server.kill)
            return server

        settings = [*settings, "repl-diskless-sync-delay 0"]
        master = start(embedded.ValkeyServer(directory / "node-0", password="", settings=settings))
        nodes = [master]
        for number in (1, 2):
            lines = [*settings, f"replicaof {master.host} {master.port}"]
            nodes.append(start(embedded.ValkeyServer(directory / f"node-{number}", password="", settings=lines)))
        watched = [
            f"sentinel monitor {MASTER} {master.host} {master.port} 2",
            f"sentinel down-after-milliseconds {MASTER} 500",
            f"sentinel failover-timeout {MASTER} 3000",
        ]
        sentinels = [
            start(SentinelServer(directory / f"sentinel-{number}", password="", settings=watched))
            for number in range(3)
        ]
        fleet = Guarded(nodes, sentinels)
        running.callback(lambda: [client.close() for client in fleet.clients.values()])
        fleet.until_whole()
        yield fleet


@dataclass
class Clustered:
    """Three masters, each with a replica."""

    nodes: list[embedded.ValkeyServer]
    clients: dict[int, redis.Redis] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.nodes[0].url()

    def client(self, server: embedded.Server) -> redis.Redis:
        return self.clients.setdefault(server.port, redis.Redis(port=server.port))

    def masters(self) -> list[embedded.ValkeyServer]:
        """The nodes that are masters now."""
        return [
            node for node in self.nodes if node.running and self.client(node).info("replication")["role"] == "master"
        ]

    def is_whole(self) -> bool:
        """Does every node that runs find the cluster well?"""
        return all(
            self.client(node).execute_command("CLUSTER", "INFO").find(b"cluster_state:ok") >= 0
            for node in self.nodes
            if node.running
        )


@contextmanager
def clustered(directory: Path) -> Iterator[Clustered]:
    """A cluster of six nodes, made without its command line tool."""
    with ExitStack() as running:
        nodes = []
        for number in range(6):
            bus = quiet_port()
            settings = ["cluster-enabled yes", f"cluster-port {bus}", "cluster-node-timeout 1000"]
            settings.append("repl-diskless-sync-delay 0")
            server = embedded.start_valkey(directory / f"node-{number}", password="", settings=settings)
            running.callback(server.kill)
            nodes.append((server, bus))
        fleet = Clustered([server for server, _ in nodes])
        running.callback(lambda: [client.close() for client in fleet.clients.values()])
        step = 16384 // 3
        for number, (server, _) in enumerate(nodes[:3]):
            last = 16383 if number == 2 else (number + 1) * step - 1
            fleet.client(server).execute_command("CLUSTER", "ADDSLOTSRANGE", number * step, last)
            fleet.client(server).execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server, bus in nodes[1:]:
            fleet.client(nodes[0][0]).execute_command("CLUSTER", "MEET", server.host, server.port, bus)
        for number, (server, _) in enumerate(nodes[3:]):
            owner = fleet.client(nodes[number][0]).execute_command("CLUSTER", "MYID")
            follow = fleet.client(server).execute_command
            until(lambda follow=follow, owner=owner: follow("CLUSTER", "REPLICATE", owner))
        until(fleet.is_whole)
        roles = [fleet.client(server).info for server, _ in nodes]
        until(lambda: all(role("replication")["connected_slaves"] == 1 for role in roles[:3]))
        until(lambda: all(role("replication")["master_link_status"] == "up" for role in roles[3:]))
        yield fleet
