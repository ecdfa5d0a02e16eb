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
-- What asks for a size, for bounds or for a partition tree waits for a table that somebody has, or wants, for himself
-- alone: of those there is what the catalog says, so that one archive's partition does not stop everything.
WITH RECURSIVE alone AS MATERIALIZED (
    SELECT l.relation AS oid
    FROM pg_catalog.pg_locks AS l
    WHERE l.locktype = 'relation'
        AND l.mode = 'AccessExclusiveLock'
        AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
        AND l.pid <> pg_backend_pid()
), tree (root, relid) AS (
    SELECT r.root, r.root FROM unnest(CAST(:roots AS oid[])) AS r (root)
    UNION
    SELECT t.root, i.inhrelid
    FROM tree AS t
    JOIN pg_catalog.pg_inherits AS i ON i.inhparent = t.relid
    JOIN pg_catalog.pg_class AS p ON p.oid = t.relid AND p.relkind = 'p'
    WHERE NOT i.inhdetachpending
)
SELECT
    t.root,
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    c.relkind = 'p' AS is_parent,
    c.relkind <> 'p' OR current_setting('server_version_num')::int >= 180000 AS analyzed_alone,
    coalesce(s.n_dead_tup, 0) AS dead,
    coalesce(s.n_live_tup, 0) AS live,
    coalesce(s.n_mod_since_analyze, 0) AS changed,
    coalesce(s.n_tup_ins + s.n_tup_upd + s.n_tup_del, 0) AS changes,
    greatest(s.last_analyze, s.last_autoanalyze) AS analyzed,
    greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed,
    CASE
        WHEN v.locked THEN (v.pages + v.toast_pages) * current_setting('block_size')::bigint
        WHEN c.relkind = 'p' THEN 0
        ELSE pg_catalog.pg_total_relation_size(c.oid)
    END AS bytes,
    v.pages * current_setting('block_size')::bigint AS heap_bytes,
    coalesce(o.oid, 0) AS toast,
    v.toast_pages * current_setting('block_size')::bigint AS toast_bytes,
    pg_catalog.pg_relation_filenode(c.oid)::bigint AS file,
    greatest(c.reltuples, 0)::float8 AS planned_rows,
    -- Of both: the server must freeze the one and the other.
    CASE WHEN c.relkind = 'p' THEN 0 ELSE greatest(age(c.relfrozenxid), age(o.relfrozenxid)) END AS age,
    CASE WHEN c.relkind = 'p' THEN 0 ELSE greatest(mxid_age(c.relminmxid), mxid_age(o.relminmxid)) END AS multixact_age,
    c.relallvisible >= v.pages AND coalesce(o.relallvisible >= v.toast_pages, TRUE) AS all_visible,
    -- PostgreSQL 18 has this column, older ones do not: NULL there. It is as old as the last vacuum.
    (pg_catalog.to_jsonb(c) ->> 'relallfrozen')::bigint >= v.pages
    AND coalesce((pg_catalog.to_jsonb(o) ->> 'relallfrozen')::bigint >= v.toast_pages, TRUE)
    AND coalesce(s.n_ins_since_vacuum + s.n_dead_tup, 0) = 0 AS all_frozen,
    CASE WHEN NOT v.locked THEN pg_catalog.pg_get_expr(c.relpartbound, c.oid) END AS bounds,
    pg_catalog.pg_get_userbyid(c.relowner) AS owner,
    coalesce((SELECT w.rolsuper FROM pg_catalog.pg_roles AS w WHERE w.oid = c.relowner), FALSE) AS owner_is_super,
    current_user AS role,
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
    ) AS busy_pid,
    v.locked AS is_locked
FROM tree AS t
JOIN pg_catalog.pg_class AS c ON c.oid = t.relid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_stat_all_tables AS s ON s.relid = c.oid
LEFT JOIN pg_catalog.pg_class AS o ON o.oid = c.reltoastrelid
CROSS JOIN LATERAL (
    SELECT
        c.oid IN (SELECT a.oid FROM alone AS a)
        OR EXISTS (
            SELECT FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid AND i.indexrelid IN (SELECT a.oid FROM alone AS a)
        ) AS locked
) AS w
CROSS JOIN LATERAL (
    -- From the files: the catalog's own count is as old as the last vacuum.
    SELECT
        w.locked,
        CASE
            WHEN c.relkind <> 'r' THEN 0
            WHEN w.locked THEN c.relpages
            ELSE pg_catalog.pg_relation_size(c.oid) / current_setting('block_size')::bigint
        END AS pages,
        CASE
            WHEN w.locked THEN coalesce(o.relpages, 0)
            ELSE coalesce(pg_catalog.pg_relation_size(o.oid), 0) / current_setting('block_size')::bigint
        END AS toast_pages
) AS v
WHERE c.relkind IN ('r', 'p')
ORDER BY dead DESC, n.nspname, c.relname;

-- name: list_commented
-- Tables that carry a comment of ours and are part of nothing any more: among them those in quarantine.
SELECT c.oid, d.description AS comment
FROM pg_catalog.pg_description AS d
JOIN pg_catalog.pg_class AS c ON c.oid = d.objoid
WHERE d.classoid = 'pg_catalog.pg_class'::regclass
    AND d.objsubid = 0
    AND d.description LIKE '{"backendops"%'
    AND c.relkind = 'r'
    AND NOT c.relispartition;

-- name: vacuum
-- SKIP_LOCKED: a vacuum that queues for the lock would make autovacuum give up its own work after a second.
-- PARALLEL 0: one process reads at a time, as autovacuum's does; the application has the disk's other half.
-- TRUNCATE FALSE: cutting off an empty end takes an exclusive lock, for which a replica ends its readers.
VACUUM (ANALYZE, SKIP_LOCKED, PARALLEL 0, TRUNCATE FALSE) /* table */ celery_taskmeta;

-- name: freeze
-- Reads every page that is not frozen yet and freezes all it may: no vacuum against wraparound reads them again.
VACUUM (FREEZE, ANALYZE, SKIP_LOCKED, PARALLEL 0, TRUNCATE FALSE) /* table */ celery_taskmeta;

-- name: analyze
-- Statistics alone, for tables that change without dying rows.
ANALYZE (SKIP_LOCKED) /* table */ celery_taskmeta;

-- name: analyze_alone
-- Of a partitioned table, without each of its partitions once more: PostgreSQL 18.
ANALYZE (SKIP_LOCKED) ONLY /* table */ celery_taskmeta;

-- name: vacuum_full
-- Rewrites the table under an exclusive lock, inside the policy's window only; SKIP_LOCKED, so that it never queues
-- for that lock with every writer behind it.
VACUUM (FULL, ANALYZE, SKIP_LOCKED) /* table */ celery_taskmeta;

-- name: limits_transactions
-- Since PostgreSQL 17 a role may have a limit that ends its session, a vacuum's too. It is off where it is 0.
SELECT EXISTS (SELECT FROM pg_catalog.pg_settings AS s WHERE s.name = 'transaction_timeout' AND s.reset_val <> '0');
