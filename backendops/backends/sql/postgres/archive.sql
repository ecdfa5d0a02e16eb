-- Moving results to the archive, a range at a time: both statements of a batch see one snapshot and commit together, so
-- no row is ever in both places or in neither.

-- name: copy_range
-- Columns are named: a column that Celery adds tomorrow must fail here, not land in the wrong place. Then remove_range,
-- on the same snapshot (REPEATABLE READ): a row that somebody changes between the two fails the batch, and is left to
-- move_unlocked. One statement, DELETE … RETURNING into INSERT, keeps every row in memory once more: a quarter slower.
INSERT INTO /* archive */ celery_taskmeta_archive (/* columns */ id, task_id, status, result, date_done /* end */, done_at)
SELECT /* columns */ id, task_id, status, result, date_done /* end */, coalesce(date_done AT TIME ZONE :zone, now())
FROM /* live */ celery_taskmeta
WHERE /* by */ date_done >= :low AND /* by */ date_done < :high AND /* due */ (date_done < :cutoff);

-- name: remove_range
-- The same rows. As many as were copied, or the batch is rolled back.
DELETE FROM /* live */ celery_taskmeta
WHERE /* by */ date_done >= :low AND /* by */ date_done < :high AND /* due */ (date_done < :cutoff);

-- name: move_unlocked
-- For a range that met a lock, or that is larger than a batch, in one statement: rows that others hold wait for the next
-- run.
-- By id and not by ctid, which is not unique over partitions; the range again, should an id not be unique either.
WITH moved AS (
    DELETE FROM /* live */ celery_taskmeta
    WHERE id = ANY (ARRAY(
        SELECT id
        FROM /* live */ celery_taskmeta
        WHERE /* by */ date_done >= :low AND /* by */ date_done < :high AND /* due */ (date_done < :cutoff)
        LIMIT :size
        FOR UPDATE SKIP LOCKED
    ))
    AND /* by */ date_done >= :low AND /* by */ date_done < :high AND /* due */ (date_done < :cutoff)
    RETURNING /* columns */ id, task_id, status, result, date_done /* end */
)
INSERT INTO /* archive */ celery_taskmeta_archive (/* columns */ id, task_id, status, result, date_done /* end */, done_at)
SELECT /* columns */ id, task_id, status, result, date_done /* end */, coalesce(date_done AT TIME ZONE :zone, now())
FROM moved;

-- name: find_periods
-- The partitions that a range needs; the server's own conversion decides, as in the move.
SELECT min(date_done AT TIME ZONE :zone) AS first, max(date_done AT TIME ZONE :zone) AS last
FROM /* live */ celery_taskmeta
WHERE /* by */ date_done >= :low AND /* by */ date_done < :high AND /* due */ (date_done < :cutoff)
GROUP BY date_trunc(:every, date_done)
ORDER BY 1;
