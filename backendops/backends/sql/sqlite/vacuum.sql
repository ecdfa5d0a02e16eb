-- vacuum: give free pages back to the file system and keep the planner's statistics current.

-- name: space
-- Free pages are reused by new rows, but the file keeps its size.
SELECT (SELECT page_size FROM pragma_page_size) AS page_size,
       (SELECT page_count FROM pragma_page_count) AS pages,
       (SELECT freelist_count FROM pragma_freelist_count) AS free_pages,
       (SELECT auto_vacuum FROM pragma_auto_vacuum) AS auto_vacuum,
       (SELECT journal_mode FROM pragma_journal_mode) AS journal_mode;

-- name: table_bytes
-- One row of dbstat per page, so that the statement can be stopped on its way: it reads the whole table.
SELECT coalesce(sum(pgsize), 0)
FROM dbstat
WHERE name IN (SELECT name FROM sqlite_master WHERE tbl_name = :table);

-- name: incremental
-- Moves pages from the end of the file into free ones and cuts the end off; a short write transaction.
PRAGMA incremental_vacuum(/* pages */ 1000);

-- name: full
-- Rewrites the whole file: every writer waits until it is done.
VACUUM;

-- name: bound_analyze
-- Rows that ANALYZE reads per index; SQLite's manual recommends 100 to 1000.
PRAGMA analysis_limit = 1000;

-- name: analyze
ANALYZE /* live */ celery_taskmeta;

-- name: checkpoint
-- Writes what it can into the file without making anybody wait.
PRAGMA wal_checkpoint(PASSIVE);

-- name: truncate_log
-- After a passive checkpoint little is left to do; the write-ahead log is cut to nothing.
PRAGMA wal_checkpoint(TRUNCATE);
