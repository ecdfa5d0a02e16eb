-- Verifying an archive table: what its partitions hold, and whether anything is also elsewhere.

-- name: count_partition
-- Read from the heap, so that a page that cannot be read is found; every row's date must be the one it is filed under.
SELECT
    count(*) AS rows,
    min(done_at) AS first,
    max(done_at) AS last,
    count(*) FILTER (WHERE done_at <> date_done AT TIME ZONE CAST(:zone AS text)) AS misdated
FROM ONLY /* partition */ celery_taskmeta_archive_p2026_11;

-- name: count_doubles
-- The same result, live and archived: a move is one statement, so somebody copied it.
SELECT count(*)
FROM ONLY /* partition */ celery_taskmeta_archive_p2026_11 AS archive
JOIN /* live */ celery_taskmeta AS live ON live./* key */ task_id = archive./* key */ task_id
WHERE live.id = archive.id AND live.date_done = archive.date_done;

-- name: find_invalid_indexes
-- What a concurrent build left behind is kept up by every insert and used by no query.
SELECT i.indexrelid::regclass::text AS name
FROM pg_catalog.pg_index AS i
WHERE NOT i.indisvalid
  AND (i.indrelid = CAST(:oid AS oid) OR i.indrelid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(CAST(:oid AS oid)) AS t))
ORDER BY 1;
