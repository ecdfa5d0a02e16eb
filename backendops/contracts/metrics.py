"""Every gauge that a job can read: name, help, labels. What a run counts (rows, seconds) is the engine's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from backendops.contracts.keyspace import BUCKETS, KEY_KINDS
from backendops.contracts.readings import Finding, Metric, Reading

TABLE: Final = {"table": ()}  # an empty tuple stands for the backend's own table names
CONNECTION_STATES: Final = ("active", "idle", "idle_in_transaction", "blocked", "other")
RESULT_KINDS: Final = ("task", "group", "chord")
SEVERITIES: Final = ("info", "warning", "critical")

RESULTS_DUE: Final = Metric(
    "backendops_results_due",
    "Results that the job would remove or move now, as last counted.",
    per_job=True,
)
RESULTS_OLDEST_AGE: Final = Metric(
    "backendops_results_oldest_age_seconds",
    "Age of the oldest finished result in the live table.",
    TABLE,
)
TABLE_BYTES: Final = Metric(
    "backendops_table_bytes", "Size of the table with its indexes and partitions, in bytes.", TABLE
)
TABLE_DEAD_ROWS: Final = Metric("backendops_table_dead_rows", "Dead rows that a vacuum could make reusable.", TABLE)
TABLE_BLOAT_BYTES: Final = Metric(
    "backendops_table_bloat_bytes",
    "Dead rows and free space of the table with its TOAST and partitions, in bytes, measured or estimated.",
    TABLE,
)
TABLE_FREEZE_AGE: Final = Metric(
    "backendops_table_freeze_age_transactions",
    "Transactions, or multixacts where those are more, since the table's oldest row that is not frozen.",
    TABLE,
)
TABLE_INVALID_INDEXES: Final = Metric(
    "backendops_table_invalid_indexes",
    "Indexes of the table and its partitions that a cancelled build left behind.",
    TABLE,
)
PARTITIONS_AHEAD: Final = Metric(
    "backendops_partitions_ahead",
    "Partitions that lie wholly in the future, the fewest of any archive or converted live table.",
)
PARTITIONS_QUARANTINED: Final = Metric(
    "backendops_partitions_quarantined", "Detached partitions that wait to be dropped."
)

BACKEND_UP: Final = Metric("backendops_backend_up", "1 where the last probe reached the backend, else 0.")
BACKEND_ROUNDTRIP: Final = Metric(
    "backendops_backend_roundtrip_seconds", "Time of the last probe's round trip, in seconds."
)
BACKEND_CONNECT: Final = Metric(
    "backendops_backend_connect_seconds", "Time the last probe took to connect and log in, in seconds."
)
POOL_CONNECTIONS: Final = Metric(
    "backendops_pool_connections", "Connections to the server, by state.", {"state": CONNECTION_STATES}
)
POOL_LIMIT: Final = Metric("backendops_pool_connections_limit", "Connections the server allows.")
POOL_OLDEST_TRANSACTION: Final = Metric(
    "backendops_pool_oldest_transaction_seconds", "Age of the oldest open transaction, in seconds."
)
POOL_WAITING_LOCKS: Final = Metric("backendops_pool_waiting_for_locks", "Sessions that wait for a lock.")
POOL_REPLICATION_LAG: Final = Metric(
    "backendops_replication_lag_seconds", "Replay lag of the slowest replica, in seconds."
)
POOL_REJECTED: Final = Metric(
    "backendops_pool_rejected_connections", "Connections the server has rejected since it started."
)
POOLER_WAITING: Final = Metric(
    "backendops_pooler_waiting_clients", "Clients that wait for a server connection in PgBouncer."
)
POOLER_LONGEST_WAIT: Final = Metric(
    "backendops_pooler_longest_wait_seconds", "How long the first client in PgBouncer's queue has waited."
)
ID_HEADROOM: Final = Metric(
    "backendops_id_headroom_ratio",
    "Part of the id column's range that is still free, the tightest table's (1 is all of it).",
)

REDIS_MEMORY_USED: Final = Metric("backendops_redis_memory_used_bytes", "Memory used, in bytes.")
REDIS_MEMORY_PEAK: Final = Metric("backendops_redis_memory_peak_bytes", "Most memory ever used, in bytes.")
REDIS_MEMORY_RSS: Final = Metric("backendops_redis_memory_rss_bytes", "Memory held from the host, in bytes.")
REDIS_MEMORY_LIMIT: Final = Metric(
    "backendops_redis_memory_limit_bytes", "maxmemory in bytes; 0 where there is no limit."
)
REDIS_FRAGMENTATION: Final = Metric("backendops_redis_fragmentation_ratio", "rss divided by used memory.")
REDIS_EVICTED: Final = Metric("backendops_redis_evicted_keys", "Keys the server has evicted since it started.")
REDIS_RESULT_KEYS: Final = Metric(
    "backendops_redis_result_keys", "Celery's result keys, by kind.", {"kind": RESULT_KINDS}
)
REDIS_RESULT_BYTES: Final = Metric(
    "backendops_redis_result_bytes", "Memory of Celery's result keys, by kind, in bytes.", {"kind": RESULT_KINDS}
)
REDIS_WITHOUT_TTL: Final = Metric(
    "backendops_redis_keys_without_ttl", "Task results and groups that have no time to live."
)
REDIS_KEYS: Final = Metric(
    "backendops_redis_keys", "Every key of the database, by kind, as last surveyed.", {"kind": KEY_KINDS}
)
REDIS_KEY_BYTES: Final = Metric(
    "backendops_redis_key_bytes", "Memory of every key of the database, by kind, in bytes.", {"kind": KEY_KINDS}
)
REDIS_KEYS_BY_TTL: Final = Metric(
    "backendops_redis_keys_by_ttl",
    "Celery's result keys by kind and by the time they have left: up to so much, more, or none set.",
    {"kind": RESULT_KINDS, "ttl": (*BUCKETS, "none")},
)
REDIS_RESULTS_BY_AGE: Final = Metric(
    "backendops_redis_results_by_age",
    "Finished task results by the time since date_done: up to so much, or more.",
    {"age": BUCKETS},
)
REDIS_SURVEYED: Final = Metric(
    "backendops_redis_surveyed_ratio", "Part of the keyspace that the last survey has gone through."
)
REDIS_LAST_SAVE_AGE: Final = Metric(
    "backendops_redis_last_save_age_seconds", "Age of the last RDB snapshot, in seconds."
)
REDIS_MEMORY_GROWTH: Final = Metric(
    "backendops_redis_memory_growth_bytes_per_second",
    "How fast used memory rises, by its own history; 0 where it does not rise for certain.",
)
REDIS_CLIENTS_IDLE: Final = Metric("backendops_redis_clients_idle", "Connections that have said nothing for an hour.")
REDIS_CLIENTS_OUTPUT: Final = Metric(
    "backendops_redis_clients_output_bytes", "Memory of the clients' buffers, in bytes."
)
REDIS_RESULT_CHANNELS: Final = Metric(
    "backendops_redis_result_channels", "Channels on which somebody waits for the result of a task."
)
REDIS_REPLICA_BEHIND: Final = Metric(
    "backendops_redis_replica_behind_bytes", "Changes that the slowest replica has not confirmed, in bytes."
)
REDIS_FORK_SECONDS: Final = Metric(
    "backendops_redis_fork_seconds", "How long the last fork, for a snapshot or a rewrite, held the server, in seconds."
)
REDIS_HITS: Final = Metric(
    "backendops_redis_keyspace_hits", "Keys that were asked for and found since the server started."
)
REDIS_MISSES: Final = Metric(
    "backendops_redis_keyspace_misses", "Keys that were asked for and not found since the server started."
)
FINDINGS: Final = Metric(
    "backendops_findings",
    "Findings of the job's last run, by severity.",
    {"severity": SEVERITIES},
    per_job=True,
)


def findings_by_severity(findings: Iterable[Finding]) -> tuple[Reading, ...]:
    """How many findings a run had, of every severity, so that a mended fault reads 0."""
    found = [finding.severity.value for finding in findings]
    return tuple(FINDINGS.read(found.count(severity), severity=severity) for severity in SEVERITIES)
