-- Partitions of an archive: what there is, and how one is retired. Every DDL statement runs under lock_timeout.

-- name: list_partitions
-- The catalog is the only truth: bounds are read from it, never from names. Bounds that are not two moments (a
-- default partition, MINVALUE, somebody else's second key) come out as NULL and are left alone.
SELECT
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    CAST(b.bounds[1] AS timestamptz) AS lower,
    CAST(b.bounds[2] AS timestamptz) AS upper,
    pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT' AS is_default,
    i.inhdetachpending AS is_pending,
    obj_description(c.oid, 'pg_class') AS comment
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_partitioned_table AS p ON p.partrelid = i.inhparent
LEFT JOIN pg_attribute AS k ON k.attrelid = i.inhparent AND k.attnum = p.partattrs[0]
CROSS JOIN LATERAL (
    SELECT regexp_match(
        pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \(''([^'']+)''\) TO \(''([^'']+)''\)$'
    ) AS bounds
    WHERE p.partstrat = 'r' AND k.atttypid = 'timestamptz'::regtype
    UNION ALL
    SELECT NULL
    WHERE p.partstrat <> 'r' OR k.atttypid IS DISTINCT FROM 'timestamptz'::regtype
) AS b
WHERE i.inhparent = to_regclass(CAST(:archive AS text))
ORDER BY lower NULLS LAST, name;

-- name: list_detached
-- Tables that carry our comment and are no longer part of anything: in quarantine, or left there by a crash.
SELECT
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    d.description AS comment,
    pg_total_relation_size(c.oid) AS bytes,
    greatest(c.reltuples, 0)::bigint AS rows
FROM pg_description AS d
JOIN pg_class AS c ON c.oid = d.objoid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE d.classoid = 'pg_class'::regclass
    AND d.objsubid = 0
    AND d.description LIKE '{"backendops"%'
    AND c.relkind = 'r'
    AND NOT c.relispartition
ORDER BY n.nspname, c.relname;

-- name: note
-- What must live as long as the rows lives with them: losing the ledger loses nothing.
COMMENT ON TABLE /* partition */ celery_taskmeta_archive_p2026_01 IS :comment;

-- name: detach_concurrently
-- Waits for transactions that use the partition without blocking anybody; outside of any transaction.
ALTER TABLE /* archive */ celery_taskmeta_archive
    DETACH PARTITION /* partition */ celery_taskmeta_archive_p2026_01 CONCURRENTLY;

-- name: finish_detach
-- A concurrent detach that was cut short stays pending; this ends it.
ALTER TABLE /* archive */ celery_taskmeta_archive
    DETACH PARTITION /* partition */ celery_taskmeta_archive_p2026_01 FINALIZE;

-- name: detach
-- The only way where somebody has added a default partition: a moment's exclusive lock on the archive.
ALTER TABLE /* archive */ celery_taskmeta_archive
    DETACH PARTITION /* partition */ celery_taskmeta_archive_p2026_01;

-- name: rename
-- Frees the partition's name: a late row of its time may need a new partition while this one is in quarantine.
ALTER TABLE /* partition */ celery_taskmeta_archive_p2026_01 RENAME TO /* retired */ celery_taskmeta_archive_p2026_01_retired;

-- name: drop
-- Without CASCADE: a view that somebody made of it is a reason to stop and say so.
DROP TABLE /* partition */ celery_taskmeta_archive_p2026_01_retired;

-- name: read_default
-- Rows in a default partition block every partition of their time, and concurrent detaching altogether.
SELECT min(done_at) AS oldest, max(done_at) AS newest, count(*) AS rows
FROM (SELECT done_at FROM /* partition */ celery_taskmeta_archive_default LIMIT 100000) AS sample;
