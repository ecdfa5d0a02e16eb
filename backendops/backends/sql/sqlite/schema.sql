-- What the file holds.

-- name: kind_of
SELECT type FROM sqlite_master WHERE name = :name AND type IN ('table', 'view');

-- name: similar
-- Tables that look like Celery's task table: the policy may have its name wrong.
SELECT candidate.name
FROM sqlite_master AS candidate
WHERE candidate.type = 'table'
  AND (SELECT count(*) FROM pragma_table_info(candidate.name) WHERE name IN ('task_id', 'date_done', 'status')) = 3
  AND NOT EXISTS (SELECT 1 FROM pragma_table_info(candidate.name) WHERE name = 'archived_at')
ORDER BY candidate.name;

-- name: columns
SELECT name, type, "notnull" AS not_null, dflt_value AS default_value
FROM pragma_table_info(:table)
ORDER BY cid;

-- name: leading_columns
-- The first column of every whole index (a partial one leaves rows out).
SELECT listed.name AS index_name, first.name AS column_name
FROM pragma_index_list(:table) AS listed
JOIN pragma_index_info(listed.name) AS first ON first.seqno = 0
WHERE listed.partial = 0;

-- name: newest_by_date
-- Finished results only: their date_done is in the configured zone, so a wrong zone shows here.
SELECT date_done, status
FROM /* live */ celery_taskmeta
WHERE date_done > '' AND status IN ('SUCCESS', 'FAILURE', 'REVOKED')
ORDER BY date_done DESC
LIMIT 1;

-- name: newest_by_id
-- Without an index on date_done the last thousand ids stand for all: ids follow time.
SELECT max(date_done) AS date_done, 'SUCCESS' AS status
FROM (SELECT date_done, status FROM /* live */ celery_taskmeta ORDER BY id DESC LIMIT 1000)
WHERE date_done > '' AND status IN ('SUCCESS', 'FAILURE', 'REVOKED');
