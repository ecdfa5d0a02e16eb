-- How a partition is retired: detached, kept in quarantine, dropped. Every DDL statement runs under lock_timeout.

-- name: list_comments
-- A partition that says it is being retired and is still attached met a crash or a busy table.
SELECT i.inhrelid AS oid, obj_description(i.inhrelid, 'pg_class') AS comment
FROM pg_inherits AS i
WHERE i.inhparent = CAST(:oid AS oid);

-- name: list_detached
-- Tables that carry our comment and are no longer part of anything: in quarantine, or left there by a crash.
SELECT
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    d.description AS comment,
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
