-- What pool-health asks PostgreSQL, each on a fresh connection in autocommit; nothing here takes a lock that matters.

-- name: answer
-- The shortest statement there is: its time is the round trip.
SELECT 1;

-- name: count_sessions
-- Without pg_read_all_stats the server hides the state of other roles' sessions, but not that they are there. The lock
-- of a changing run is a long transaction of ours that holds no snapshot: it is nothing to warn of.
SELECT
    CASE
        WHEN backend_type IS NULL THEN 'hidden'
        WHEN state LIKE 'idle in transaction%' THEN 'idle_in_transaction'
        WHEN state = 'active' AND wait_event_type = 'Lock' THEN 'blocked'
        WHEN state IN ('active', 'idle') THEN state
        ELSE 'other'
    END AS state,
    coalesce(application_name, '') AS application,
    count(*) AS sessions,
    max(extract(epoch FROM clock_timestamp() - xact_start))
        FILTER (WHERE pid <> pg_backend_pid() AND application_name <> CAST(:ours AS text)) AS oldest_transaction
FROM pg_stat_activity
WHERE datid IS NOT NULL AND (backend_type = 'client backend' OR backend_type IS NULL)
GROUP BY 1, 2;

-- name: read_limits
-- What an ordinary role can have: the reserved ones are for superusers and, from 16 on, for a role of the operator's.
SELECT
    (sum(setting::int) FILTER (WHERE name = 'max_connections'))::int
    - coalesce(sum(setting::int) FILTER (WHERE name <> 'max_connections'), 0)::int AS connections_limit
FROM pg_settings
WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections');

-- name: count_waiting
-- pg_locks hides nothing, so this is right for every role.
SELECT count(DISTINCT pid) AS waiting FROM pg_locks WHERE NOT granted;

-- name: read_replication
-- A replica that has replayed everything reports no lag, whatever its last figure was; sync_state is hidden without
-- pg_read_all_stats. On a replica: how old its newest replayed transaction is, unless it has replayed all it received.
SELECT
    pg_is_in_recovery() AS is_replica,
    (SELECT count(*) FROM pg_stat_replication) AS replicas,
    (SELECT count(*) FROM pg_stat_replication WHERE state IS NULL) AS hidden_replicas,
    CASE
        WHEN NOT pg_is_in_recovery() THEN (
            SELECT max(CASE WHEN replay_lsn >= sent_lsn THEN 0 ELSE extract(epoch FROM coalesce(replay_lag, '0')) END)
            FROM pg_stat_replication
            WHERE state = 'streaming'
        )
        WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
        ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())
    END AS lag;

-- name: find_id
-- The id column's type, and the sequence that feeds it: one of the column's own, or the one Celery names itself, in
-- the table's schema (where database_table_schemas puts it) or wherever search_path finds it.
SELECT
    a.atttypid::regtype::text AS id_type,
    s.sequence::text AS sequence,
    (
        SELECT format('%I.%I', sn.nspname, sc.relname)
        FROM pg_class AS sc
        JOIN pg_namespace AS sn ON sn.oid = sc.relnamespace
        WHERE sc.oid = s.sequence
    ) AS sequence_name,
    CASE WHEN has_sequence_privilege(s.sequence, 'SELECT,USAGE') THEN pg_sequence_last_value(s.sequence) END AS last_value,
    has_sequence_privilege(s.sequence, 'SELECT,USAGE') AS may_read_sequence,
    has_table_privilege(c.oid, 'SELECT') OR has_column_privilege(c.oid, a.attnum, 'SELECT') AS may_read
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'id' AND NOT a.attisdropped
CROSS JOIN LATERAL (
    SELECT coalesce(
        pg_get_serial_sequence(c.oid::regclass::text, 'id')::regclass,
        to_regclass(format('%I.%I', n.nspname, CAST(:sequence AS text))),
        to_regclass(quote_ident(CAST(:sequence AS text)))
    ) AS sequence
) AS s
WHERE c.oid = to_regclass(CAST(:table AS text));

-- name: read_newest_id
-- Quick by the primary key; the sequence alone is not enough where ids were copied in from elsewhere.
SELECT max(id) AS newest FROM /* live */ celery_taskmeta;
