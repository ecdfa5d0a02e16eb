-- Unfinished rows that nothing was written to for long. They have no date, so the server's transactions are their clock:
-- a row version that was written by a transaction that had ended when a mark was taken has not changed since.

-- name: take_mark
-- Every transaction below the oldest running one has ended. Transaction ids mean something on this server, on this line
-- of its history and for this table only: after a restore from a dump or a failover they are others.
SELECT
    clock_timestamp() AS at,
    CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) AS oldest,
    CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) AS next,
    concat_ws(
        ' ',
        (SELECT system_identifier FROM pg_control_system()),
        CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
        (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()),
        CAST(:oid AS oid)
    ) AS line,
    (SELECT max(id) FROM /* live */ celery_taskmeta) AS last_id;

-- name: find_next
-- Again before each batch: a row that is written after it looks nearly 4,294,967,296 transactions old, and the period
-- that the batch is archived in may have ended meanwhile.
SELECT
    clock_timestamp() AS at,
    CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) AS next;

-- name: count_stuck
-- As it is moved below.
SELECT count(*)
FROM /* live */ celery_taskmeta
WHERE date_done IS NULL AND /* range */ (id > :last_id)
  AND mod(:next - CAST(CAST(xmin AS text) AS bigint), 4294967296) BETWEEN :next - :oldest + 1 AND 4194967296;

-- name: move_stuck
-- How many transactions before the next one a row was written is known up to 4,294,967,296, as xmin has 32 bits: one
-- that is frozen and older may look younger than it is, and waits; one written since the mark never looks older. One
-- written since :next was taken looks older by all of them: the last hundred million prove nothing, which is far more
-- transactions than begin while one statement runs. A row that another session holds, or has rewritten since this
-- statement began, stays.
WITH stuck AS (
    SELECT id
    FROM /* live */ celery_taskmeta
    WHERE date_done IS NULL AND /* range */ (id > :last_id)
      AND mod(:next - CAST(CAST(xmin AS text) AS bigint), 4294967296) BETWEEN :next - :oldest + 1 AND 4194967296
    LIMIT :size
    FOR UPDATE SKIP LOCKED
), moved AS (
    DELETE FROM /* live */ celery_taskmeta
    WHERE id = ANY (ARRAY(SELECT id FROM stuck)) AND date_done IS NULL
      AND mod(:next - CAST(CAST(xmin AS text) AS bigint), 4294967296) BETWEEN :next - :oldest + 1 AND 4194967296
    RETURNING /* columns */ id, task_id, status, result, date_done /* end */
)
INSERT INTO /* archive */ celery_taskmeta_archive (/* columns */ id, task_id, status, result, date_done /* end */, done_at, stuck)
SELECT /* columns */ id, task_id, status, result, date_done /* end */, now(), true
FROM moved;
