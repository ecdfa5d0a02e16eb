-- What a vacuum is decided by, and the vacuum itself: always in autocommit, never waiting in a queue.

-- name: list_archives
-- Known by what only an archive of ours has: partitioned by done_at, with the moment of archiving beside it.
SELECT c.oid
FROM pg_catalog.pg_class AS c
WHERE c.relkind = 'p'
    AND NOT c.relispartition
    AND pg_catalog.pg_get_partkeydef(c.oid) = 'RANGE (done_at)'
    AND EXISTS (
        SELECT FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = c.oid AND a.attname = 'archived_at' AND NOT a.attisdropped
    );

-- name: list_tables
-- Every table with rows of its own under the given ones. A partitioned parent has none, but has statistics that
-- autovacuum never refreshes. Whoever holds such a lock is vacuuming, analyzing or altering: pg_locks hides nothing.
SELECT
    r.root,
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    c.relkind = 'p' AS is_parent,
    coalesce(s.n_dead_tup, 0) AS dead,
    coalesce(s.n_live_tup, 0) AS live,
    coalesce(s.n_mod_since_analyze, 0) AS changed,
    greatest(s.last_analyze, s.last_autoanalyze) AS analyzed,
    greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed,
    CASE WHEN c.relkind = 'p' THEN 0 ELSE pg_catalog.pg_total_relation_size(c.oid) END AS bytes,
    CASE WHEN c.relkind = 'p' THEN 0 ELSE pg_catalog.pg_relation_size(c.oid) END AS heap_bytes,
    pg_catalog.pg_relation_filenode(c.oid)::bigint AS file,
    greatest(c.reltuples, 0)::float8 AS planned_rows,
    pg_catalog.pg_get_userbyid(c.relowner) AS owner,
    -- A database's owner may vacuum every table in it; from 17 on MAINTAIN can be granted.
    pg_has_role(c.relowner, 'USAGE')
    OR (SELECT pg_has_role(d.datdba, 'USAGE') FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
    OR CASE
        WHEN current_setting('server_version_num')::int >= 170000 THEN has_table_privilege(c.oid, 'MAINTAIN')
        ELSE FALSE
    END AS may_vacuum,
    (
        SELECT min(l.pid)
        FROM pg_catalog.pg_locks AS l
        WHERE l.locktype = 'relation'
            AND l.relation = c.oid
            AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
            AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'AccessExclusiveLock')
            AND l.granted
            AND l.pid <> pg_backend_pid()
    ) AS busy_pid
FROM unnest(CAST(:roots AS oid[])) AS r (root)
CROSS JOIN LATERAL (
    -- An ordinary table has no partition tree.
    SELECT r.root AS relid
    UNION
    SELECT tree.relid::oid FROM pg_catalog.pg_partition_tree(r.root) AS tree
) AS t
JOIN pg_catalog.pg_class AS c ON c.oid = t.relid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_stat_all_tables AS s ON s.relid = c.oid
WHERE c.relkind IN ('r', 'p')
ORDER BY dead DESC, n.nspname, c.relname;

-- name: estimate_row_bytes
-- From the planner's statistics, as the row lies in the heap (a long value is a pointer of 18 bytes there): 24 bytes
-- of header, 4 of line pointer and some 4 of alignment beside the columns' widths. NULL where there are none.
SELECT (sum(s.avg_width * (1 - s.null_frac)) + 32)::float8 AS row_bytes
FROM pg_catalog.pg_stats AS s
WHERE s.schemaname = CAST(:schema AS name) AND s.tablename = CAST(:name AS name) AND NOT s.inherited;

-- name: vacuum
-- SKIP_LOCKED: a vacuum that queues for the lock would make autovacuum give up its own work after a second.
VACUUM (ANALYZE, SKIP_LOCKED) /* table */ celery_taskmeta;

-- name: analyze
-- Statistics alone, for tables that change without dying rows.
ANALYZE (SKIP_LOCKED) /* table */ celery_taskmeta;

-- name: vacuum_full
-- Rewrites the table under an exclusive lock, inside the policy's window only; SKIP_LOCKED, so that it never queues
-- for that lock with every writer behind it.
VACUUM (FULL, ANALYZE, SKIP_LOCKED) /* table */ celery_taskmeta;

-- name: find_holder
-- What keeps dead rows from being removed: the oldest snapshot of a session, a slot, a prepared transaction or a
-- replica with hot_standby_feedback. Sessions of other databases do not hold back these tables.
SELECT kind, name, pid, since
FROM (
    SELECT
        'session' AS kind,
        coalesce(nullif(a.application_name, ''), a.usename) AS name,
        a.pid,
        a.xact_start AS since,
        greatest(age(a.backend_xmin), age(a.backend_xid)) AS xmin_age
    FROM pg_catalog.pg_stat_activity AS a
    WHERE a.pid <> pg_backend_pid() AND a.datname = current_database() AND a.backend_type <> 'walsender'
    UNION ALL
    SELECT 'replication slot', s.slot_name, s.active_pid, NULL, age(s.xmin)
    FROM pg_catalog.pg_replication_slots AS s
    UNION ALL
    SELECT 'prepared transaction', p.gid, NULL, p.prepared, age(p.transaction)
    FROM pg_catalog.pg_prepared_xacts AS p
    WHERE p.database = current_database()
    UNION ALL
    SELECT 'replica', r.application_name, r.pid, NULL, age(r.backend_xmin)
    FROM pg_catalog.pg_stat_replication AS r
) AS holders
WHERE xmin_age IS NOT NULL
ORDER BY xmin_age DESC
LIMIT 1;
