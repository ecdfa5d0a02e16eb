-- What a vacuum is decided by, and the vacuum itself: always in autocommit, never waiting in a queue.

-- name: list_tables
-- Every table with rows of its own under the given ones; a partitioned parent has none, but has statistics that
-- autovacuum never refreshes. Whoever holds this lock is vacuuming, analyzing or altering: pg_locks hides nothing.
SELECT
    r.root,
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    c.relkind = 'p' AS is_parent,
    s.n_dead_tup AS dead,
    s.n_live_tup AS live,
    s.n_mod_since_analyze AS changed,
    greatest(s.last_analyze, s.last_autoanalyze) AS analyzed,
    greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed,
    pg_total_relation_size(c.oid) AS bytes,
    pg_relation_size(c.oid) AS heap_bytes,
    greatest(c.reltuples, 0)::float8 AS planned_rows,
    pg_get_userbyid(c.relowner) AS owner,
    -- A database's owner may vacuum every table in it; from 17 on MAINTAIN can be granted.
    pg_has_role(c.relowner, 'USAGE')
    OR (SELECT pg_has_role(d.datdba, 'USAGE') FROM pg_database AS d WHERE d.datname = current_database())
    OR CASE
        WHEN current_setting('server_version_num')::int >= 170000 THEN has_table_privilege(c.oid, 'MAINTAIN')
        ELSE FALSE
    END AS may_vacuum,
    (
        SELECT min(l.pid)
        FROM pg_locks AS l
        WHERE l.locktype = 'relation'
            AND l.relation = c.oid
            AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
            AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'AccessExclusiveLock')
            AND l.granted
            AND l.pid <> pg_backend_pid()
    ) AS busy_pid
FROM unnest(CAST(:tables AS text[])) AS r (root)
CROSS JOIN LATERAL (
    SELECT t.relid FROM pg_partition_tree(to_regclass(r.root)) AS t
    UNION
    -- An ordinary table has no partition tree.
    SELECT to_regclass(r.root)
) AS t
JOIN pg_class AS c ON c.oid = t.relid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid
WHERE c.relkind IN ('r', 'p')
ORDER BY s.n_dead_tup DESC NULLS LAST, c.relname;

-- name: estimate_row_width
-- From the planner's statistics: 24 bytes of row header and 4 of line pointer beside the columns' average widths.
SELECT coalesce(sum(CASE WHEN s.inherited THEN 0 ELSE s.avg_width * (1 - s.null_frac) END), 0)::float8 + 28 AS width
FROM pg_stats AS s
WHERE s.schemaname = CAST(:schema AS text) AND s.tablename = CAST(:name AS text);

-- name: vacuum
-- SKIP_LOCKED: a vacuum that queues for the lock would make autovacuum give up its own work after a second.
VACUUM (ANALYZE, SKIP_LOCKED) /* table */ celery_taskmeta;

-- name: analyze
-- Statistics alone, for tables that change without dying rows.
ANALYZE (SKIP_LOCKED) /* table */ celery_taskmeta;

-- name: vacuum_full
-- Rewrites the table under an exclusive lock: only inside the policy's window.
VACUUM (FULL, ANALYZE) /* table */ celery_taskmeta;

-- name: set_timeout
-- One VACUUM cannot be split, so it may take what is left of the run's time.
SELECT set_config('statement_timeout', CAST(:milliseconds AS text), FALSE);

-- name: find_holder
-- What keeps dead rows from being removed: the oldest snapshot of a session, a slot, a prepared transaction or a
-- replica with hot_standby_feedback. Sessions of other databases do not hold back these tables.
SELECT kind, name, pid, since, xmin_age
FROM (
    SELECT
        'session' AS kind,
        coalesce(nullif(a.application_name, ''), a.usename) AS name,
        a.pid,
        a.xact_start AS since,
        greatest(age(a.backend_xmin), age(a.backend_xid)) AS xmin_age
    FROM pg_stat_activity AS a
    WHERE a.pid <> pg_backend_pid()
        AND a.datname = current_database()
        AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
        AND a.backend_type IS DISTINCT FROM 'walsender'
    UNION ALL
    SELECT 'replication slot', s.slot_name, s.active_pid, NULL, age(s.xmin)
    FROM pg_replication_slots AS s
    WHERE s.xmin IS NOT NULL
    UNION ALL
    SELECT 'prepared transaction', p.gid, NULL, p.prepared, age(p.transaction)
    FROM pg_prepared_xacts AS p
    WHERE p.database = current_database()
    UNION ALL
    SELECT 'replica', r.application_name, r.pid, NULL, age(r.backend_xmin)
    FROM pg_stat_replication AS r
    WHERE r.backend_xmin IS NOT NULL
) AS holders
WHERE xmin_age IS NOT NULL
ORDER BY xmin_age DESC
LIMIT 1;
