-- How a partition is retired: detached, kept in quarantine, dropped. Every DDL statement runs under lock_timeout.

-- name: list_comments
-- A partition that says it is being retired and is still attached met a crash or a busy table. A foreign one keeps its
-- rows elsewhere: it takes no such comment, and DROP TABLE does not drop it.
SELECT i.inhrelid AS oid, c.relkind = 'f' AS is_foreign, obj_description(i.inhrelid, 'pg_class') AS comment
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
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
-- Tables that carry our comment and are no longer part of anything: in quarantine, or left there by a crash. Some are
-- partitioned themselves.
SELECT
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    d.description AS comment,
    greatest(c.reltuples, 0)::bigint AS rows,
    coalesce(
        (SELECT sum(pg_total_relation_size(t.relid)) FROM pg_partition_tree(c.oid) AS t),
        pg_total_relation_size(c.oid)
    )::bigint AS bytes
FROM pg_description AS d
JOIN pg_class AS c ON c.oid = d.objoid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE d.classoid = 'pg_class'::regclass
    AND d.objsubid = 0
    AND d.description LIKE '{"backendops"%'
    AND c.relkind IN ('r', 'p')
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
-- The oldest row of a former default partition; one without a finite time has no partition to go to, nor has one of a
-- year that this program's calendar does not have whole.
SELECT min(done_at)
FROM /* former */ celery_taskmeta_archive_default
WHERE done_at >= greatest(CAST(:since AS timestamptz), '0001-02-01Z') AND done_at < '9999-11-01Z';

-- name: find_bound
-- The end of a batch of so many rows, from the index alone. Nothing: they all fit.
SELECT done_at
FROM /* former */ celery_taskmeta_archive_default
WHERE done_at >= :low AND done_at < :end
ORDER BY done_at
OFFSET :size LIMIT 1;

-- name: move_former
-- One statement: each row is in the one table or in the other.
WITH moved AS (
    DELETE FROM /* former */ celery_taskmeta_archive_default
    WHERE done_at >= :low AND done_at < :high
    RETURNING /* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */
)
INSERT INTO /* archive */ celery_taskmeta_archive (/* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */)
SELECT /* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */ FROM moved;

-- name: move_moment
-- The same for rows that share one moment.
WITH moved AS (
    DELETE FROM /* former */ celery_taskmeta_archive_default
    WHERE done_at = :low
    RETURNING /* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */
)
INSERT INTO /* archive */ celery_taskmeta_archive (/* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */)
SELECT /* columns */ id, task_id, status, result, date_done, done_at, archived_at /* end */ FROM moved;

-- name: list_definitions
-- Whole, so that a column that came meanwhile can be given to a partition that was away.
SELECT
    a.attname AS name,
    format(
        '%I %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.attcollation <> t.typcollation THEN ' COLLATE ' || a.attcollation::regcollation ELSE '' END,
        ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
        CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
    ) AS definition
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = CAST(:oid AS oid) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum;

-- name: list_missing_indexes
-- What the parent got meanwhile: attaching would build them while everybody waits. Compared by what follows the names.
WITH defined AS (
    SELECT
        x.indrelid,
        x.indisunique,
        x.indisvalid,
        x.indisprimary,
        substr(pg_get_indexdef(x.indexrelid), 1 + length(format(
            'CREATE %sINDEX %I ON %s%I.%I', CASE WHEN x.indisunique THEN 'UNIQUE ' ELSE '' END, i.relname,
            CASE WHEN i.relkind = 'I' THEN 'ONLY ' ELSE '' END, n.nspname, t.relname
        ))) AS rest
    FROM pg_catalog.pg_index AS x
    JOIN pg_catalog.pg_class AS i ON i.oid = x.indexrelid
    JOIN pg_catalog.pg_class AS t ON t.oid = x.indrelid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
    WHERE x.indrelid IN (CAST(:parent AS oid), CAST(:oid AS oid))
)
SELECT wanted.indisunique AS is_unique, wanted.rest
FROM defined AS wanted
WHERE wanted.indrelid = CAST(:parent AS oid) AND NOT wanted.indisprimary AND NOT EXISTS (
    SELECT
    FROM defined AS there
    WHERE there.indrelid = CAST(:oid AS oid) AND there.indisvalid AND there.rest = wanted.rest
        AND there.indisunique >= wanted.indisunique
);

-- name: build_index
-- Of a partition that is still away: nobody but us uses it.
CREATE /* unique */ UNIQUE /* end */ INDEX ON /* partition */ celery_taskmeta_archive_p2026_01 /* rest */ USING btree (task_id) /* end */;
