-- The facts behind the safety limits.

-- name: read_clock
-- A standby answers everything and changes nothing.
SELECT clock_timestamp() AS now, pg_is_in_recovery() AS standby, current_setting('default_transaction_read_only') AS read_only;

-- name: newest_by_date
-- One step into the index.
SELECT max(date_done) FROM /* live */ celery_taskmeta;

-- name: newest_by_id
-- Without an index on date_done: among the results that were begun last, which is nearly always the newest of all.
SELECT max(date_done)
FROM (SELECT date_done FROM /* live */ celery_taskmeta ORDER BY id DESC LIMIT 1000) AS latest;
