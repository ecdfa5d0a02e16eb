-- How a partition is retired: detached, kept in quarantine, dropped. Every DDL statement runs under lock_timeout.

-- name: list_comments
-- A partition that says it is being retired and is still attached met a crash or a busy table.
SELECT i.inhrelid AS oid, obj_description(i.inhrelid, 'pg_class') AS comment
FROM pg_inherits AS i
WHERE i.inhparent = CAST(:oid AS oid);

-- name: estimate_rows
-- As the server counted last. What it has not counted yet, by its size: results take some 400 bytes each.
SELECT coalesce(sum(
    CASE WHEN c.reltuples >= 0 THEN c.reltuples ELSE pg_catalog.pg_relation_size(c.oid) / 400 END
), 0)::bigint
FROM pg_catalog.pg_class AS c
WHERE c.oid IN (
    SELECT leaf.relid
    FROM unnest(CAST(:oids AS oid[])) AS given (oid)
    CROSS JOIN LATERAL pg_catalog.pg_partition_tree(given.oid) AS leaf
    WHERE leaf.isleaf
);

-- name: list_detached
-- Tables that carry our comment and are no longer part of anything: in quarantine, or left there by a crash.
SELECT
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    d.description AS comment,
    greatest(c.reltuples, 0)::bigint AS rows,
    pg_total_relation_size(c.oid) AS bytes
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
-- What must live as long as the rows, lives with them: losing the ledger loses nothing.
COMMENT ON TABLE /* partition */ celery_taskmeta_archive_p2026_01 IS :comment;

-- name: detach_concurrently
-- Waits for transactions that use the partition without making anybody else wait; outside of any transaction.
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

-- name: lock
-- Before the last look: nobody can attach it again between that and the drop.
LOCK TABLE /* partition */ celery_taskmeta_archive_p2026_01 IN ACCESS EXCLUSIVE MODE;

-- name: look_again
-- Is the locked table still the one that was meant, detached and with the comment it had?
SELECT EXISTS (
    SELECT
    FROM pg_class AS c
    WHERE c.oid = CAST(:oid AS oid)
        AND c.oid = to_regclass(CAST(:name AS text))
        AND NOT c.relispartition
        AND obj_description(c.oid, 'pg_class') = CAST(:comment AS text)
);

-- name: drop
-- Without CASCADE: a view that somebody made of it is a reason to stop and say so.
DROP TABLE /* partition */ celery_taskmeta_archive_p2026_01;

-- name: sample_default
-- Rows in a default partition stand in the way of every partition of their time.
SELECT EXISTS (SELECT FROM /* partition */ celery_taskmeta_archive_default);

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

-- name: list_attached
-- Every partition of these tables, as an operator asks for them.
SELECT
    i.inhparent AS parent,
    quote_ident(pn.nspname) || '.' || quote_ident(p.relname) AS parent_name,
    n.nspname AS schema,
    c.relname AS name,
    pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS bounds,
    i.inhdetachpending AS detach_pending,
    greatest(c.reltuples, 0)::bigint AS rows,
    pg_catalog.pg_total_relation_size(c.oid) AS bytes
FROM pg_catalog.pg_inherits AS i
JOIN pg_catalog.pg_class AS p ON p.oid = i.inhparent
JOIN pg_catalog.pg_namespace AS pn ON pn.oid = p.relnamespace
JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.inhparent = ANY (CAST(:oids AS oid[]))
ORDER BY 2, c.relname;

-- name: find_parent
-- What a quarantined partition was a part of, by the name that its comment remembers.
SELECT c.oid, c.relkind::text AS kind
FROM pg_catalog.pg_class AS c
WHERE c.oid = to_regclass(CAST(:name AS text));

-- name: forget
-- It is an ordinary partition again, and not to be dropped by anybody.
COMMENT ON TABLE /* partition */ celery_taskmeta_archive_p2026_01 IS NULL;

-- name: find_first
-- The oldest row of a former default partition; one without a finite time has no partition to go to.
SELECT min(done_at)
FROM ONLY /* former */ celery_taskmeta_archive_default
WHERE done_at >= CAST(:since AS timestamptz) AND isfinite(done_at);

-- name: find_bound
-- The end of a batch of so many rows, from the index alone. Nothing: they all fit.
SELECT done_at
FROM ONLY /* former */ celery_taskmeta_archive_default
WHERE done_at >= :low AND done_at < :end
ORDER BY done_at
OFFSET :size LIMIT 1;

-- name: move_former
-- One statement: each row is in the one table or in the other.
WITH moved AS (
    DELETE FROM ONLY /* former */ celery_taskmeta_archive_default
    WHERE done_at >= :low AND done_at < :high
    RETURNING /* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */
)
INSERT INTO /* archive */ celery_taskmeta_archive (/* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */)
SELECT /* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */ FROM moved;

-- name: move_moment
-- The same for rows that share one moment.
WITH moved AS (
    DELETE FROM ONLY /* former */ celery_taskmeta_archive_default
    WHERE done_at = :low
    RETURNING /* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */
)
INSERT INTO /* archive */ celery_taskmeta_archive (/* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */)
SELECT /* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */ FROM moved;
