-- The archive table: Celery's columns as they are, and a date of its own to partition by.

-- name: create_archive
-- No key and nothing unique: a task that ran again under its old id must not jam the archive. date_done may be NULL and
-- has no time zone, so done_at is the partition key: NOT NULL, so that no DEFAULT partition is ever needed.
CREATE TABLE /* archive */ celery_taskmeta_archive (
    /* columns */ id integer, task_id varchar(155), status varchar(50), result bytea, date_done timestamp /* end */,
    done_at timestamp with time zone NOT NULL,
    archived_at timestamp with time zone NOT NULL DEFAULT now(),
    stuck boolean NOT NULL DEFAULT false
) PARTITION BY RANGE (done_at);

-- name: filter_by_key
-- Asked for by id, hardly ever. Ids are random: in a tree or a hash each goes to a page of its own, which was half of what
-- archiving a result cost, and more the larger the archive was. Here every 32 pages have a filter of the ids in them, a
-- tenth of a hash's size. 1,000 ids: pages of 8 KiB hold some 20 results. One filter in 1,000 points to 32 pages in vain.
CREATE INDEX ON /* archive */ celery_taskmeta_archive
USING brin (/* key */ task_id /* filter */ text_bloom_ops (n_distinct_per_range = 1000, false_positive_rate = 0.001))
WITH (pages_per_range = 32);

-- name: index_key
-- For an archive that is read by id after every batch, as one of another database is; and for ids of a type that has no
-- filter. Not a tree: half the size, and half the work.
CREATE INDEX ON /* archive */ celery_taskmeta_archive USING hash (/* key */ task_id);

-- name: index_done_at
-- Exported and restored by time.
CREATE INDEX ON /* archive */ celery_taskmeta_archive (done_at);

-- name: describe_archive
-- For whoever meets the table without having heard of backendops.
COMMENT ON TABLE /* archive */ celery_taskmeta_archive IS :comment;

-- name: find_archive
-- Also when it is not ours: its kind and key say so.
SELECT
    c.oid,
    c.relkind::text AS kind,
    pg_catalog.pg_get_partkeydef(c.oid) AS partition_key,
    has_table_privilege(c.oid, 'INSERT') AS can_insert,
    pg_has_role(c.relowner, 'USAGE') AS is_owner,
    current_user AS role,
    (
        SELECT min(i.indexrelid::regclass::text)
        FROM pg_catalog.pg_index AS i
        -- Of an index over all partitions that one, as no other can be dropped.
        WHERE i.indisunique
          AND NOT (SELECT ic.relispartition FROM pg_catalog.pg_class AS ic WHERE ic.oid = i.indexrelid)
          AND (i.indrelid = c.oid OR i.indrelid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(c.oid) AS t))
    ) AS unique_index
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = CAST(:schema AS name) AND c.relname = CAST(:name AS name);

-- name: find_interceptor
-- A BEFORE trigger for each row (bits 1, 2 and 4: row, before, insert) may return nothing or another row, and a rule
-- may do something else instead; a move would not notice.
SELECT found.drop_it
FROM (
    SELECT format('DROP TRIGGER %I ON %s;', t.tgname, t.tgrelid::regclass) AS drop_it
    FROM pg_catalog.pg_trigger AS t
    WHERE (t.tgrelid = CAST(:oid AS oid)
           OR t.tgrelid IN (SELECT tree.relid FROM pg_catalog.pg_partition_tree(CAST(:oid AS oid)) AS tree))
      AND t.tgtype::int & 7 = 7 AND t.tgenabled IN ('O', 'A') AND NOT t.tgisinternal
    UNION ALL
    SELECT format('DROP RULE %I ON %s;', r.rulename, r.ev_class::regclass)
    FROM pg_catalog.pg_rewrite AS r
    WHERE r.ev_class = CAST(:oid AS oid) AND r.ev_type = '3' AND r.is_instead AND r.ev_enabled IN ('O', 'A')
) AS found
ORDER BY 1
LIMIT 1;

-- name: add_column
-- A Celery upgrade added it to the live table; old rows of the archive have none, as in the live one.
ALTER TABLE /* archive */ celery_taskmeta_archive ADD COLUMN /* column */ children bytea /* end */;

-- name: add_stuck
-- An archive from before results could be stuck. A constant default writes to no row.
ALTER TABLE /* archive */ celery_taskmeta_archive ADD COLUMN IF NOT EXISTS stuck boolean NOT NULL DEFAULT false;

-- name: list_partitions
-- Bounds as text are the server's only public form of them; the transaction's TimeZone is UTC.
SELECT
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS bounds,
    i.inhdetachpending AS detach_pending
FROM pg_catalog.pg_inherits AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.inhparent = CAST(:oid AS oid);

-- name: lock_partitions
-- One maker of partitions at a time: the second one looks again and finds it made. Attaching takes this lock anyway; it
-- stops neither readers nor writers.
LOCK TABLE ONLY /* archive */ celery_taskmeta_archive IN SHARE UPDATE EXCLUSIVE MODE;

-- name: is_taken
-- Any relation takes the name, an index or a sequence too.
SELECT EXISTS (
    SELECT
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = CAST(:schema AS name) AND c.relname = CAST(:name AS name)
);

-- name: create_partition
-- Made beside the archive and then attached: PARTITION OF would lock out every reader of the archive.
CREATE TABLE /* partition */ celery_taskmeta_archive_p2026_11 (LIKE /* archive */ celery_taskmeta_archive INCLUDING ALL);

-- name: attach_partition
-- An empty table: nothing is scanned, its indexes are taken over as they are.
ALTER TABLE /* archive */ celery_taskmeta_archive
ATTACH PARTITION /* partition */ celery_taskmeta_archive_p2026_11 FOR VALUES FROM (:start) TO (:end);
