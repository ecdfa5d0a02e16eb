"""The memory of a cluster as one figure each: the sum of its masters, or the worst of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from backendops.contracts.capabilities import MemoryReport
from backendops.contracts.server_health import Growth, ServerHealth


def together(nodes: Sequence[MemoryReport]) -> MemoryReport:
    """One report of all masters, which it holds, the fullest first; what results take is the cluster's in each."""
    nodes = sorted(nodes, key=lambda node: (-_part(node), -node.used, node.node))
    limits = [node.limit for node in nodes]
    saves = [node.rdb_last_save for node in nodes if node.rdb_last_save is not None]
    healths = [node.server for node in nodes if node.server is not None]
    return replace(
        nodes[0],
        node="",
        nodes=tuple(nodes),
        used=sum(node.used for node in nodes),
        peak=sum(node.peak for node in nodes),
        rss=sum(node.rss for node in nodes),
        # One without a limit may take whatever its host has.
        limit=sum(limits) if all(limits) else 0,
        # Masters may share a host.
        total=max(node.total for node in nodes),
        fragmentation=max(node.fragmentation for node in nodes),
        eviction_policy=", ".join(sorted({node.eviction_policy for node in nodes})),
        evicted_keys=sum(node.evicted_keys for node in nodes),
        loading=any(node.loading for node in nodes),
        rdb_last_save=min(saves, default=None),
        rdb_last_ok=all(node.rdb_last_ok for node in nodes),
        rdb_changes=sum(node.rdb_changes for node in nodes),
        aof_enabled=any(node.aof_enabled for node in nodes),
        aof_last_ok=all(node.aof_last_ok for node in nodes),
        keys=sum(node.keys for node in nodes),
        keys_without_ttl=sum(node.keys_without_ttl for node in nodes),
        server=_health(healths),
    )


def _part(node: MemoryReport) -> float:
    return node.used / node.limit if node.limit else 0.0


def _health(nodes: Sequence[ServerHealth]) -> ServerHealth:
    channels = [node.result_channels for node in nodes if node.result_channels is not None]
    downs = [node.link_down for node in nodes if node.link_down is not None]
    snapshots = [node.snapshot_seconds for node in nodes if node.snapshot_seconds is not None]
    return ServerHealth(
        growth=_growth([node.growth for node in nodes]),
        clients=tuple(group for node in nodes for group in node.clients),
        clients_output=sum(node.clients_output for node in nodes),
        # A message to a channel goes to every node, and whoever waits is subscribed on one.
        result_channels=sum(channels) if channels else None,
        channels_looked_at=sum(node.channels_looked_at for node in nodes),
        channels_of_the_past=sum(node.channels_of_the_past for node in nodes),
        replicas=tuple(replica for node in nodes for replica in node.replicas),
        backlog=min((node.backlog for node in nodes), default=0),
        link_down=max(downs, default=None),
        fork_seconds=max((node.fork_seconds for node in nodes), default=0.0),
        snapshot_seconds=max(snapshots, default=None),
        hits=sum(node.hits for node in nodes),
        misses=sum(node.misses for node in nodes),
    )


def _growth(lines: Sequence[Growth | None]) -> Growth | None:
    known = [line for line in lines if line is not None]
    if not known or len(known) < len(lines):
        return None
    # Masters grow by themselves: their errors are independent.
    error = math.sqrt(sum(line.error**2 for line in known))
    return Growth(
        sum(line.rate for line in known),
        error,
        min(line.points for line in known),
        min(line.span for line in known),
    )
