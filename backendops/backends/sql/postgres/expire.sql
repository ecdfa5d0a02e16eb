-- Removing results past keeping, a range at a time.

-- name: remove_range
-- The range bounds the rows whose locks a writer could meet, and lets the index be walked once, forward.
DELETE FROM /* live */ celery_taskmeta
WHERE /* by */ date_done >= :low AND /* by */ date_done < :high AND /* due */ (date_done < :cutoff);

-- name: remove_unlocked
-- The same for a range that met a lock, or that is larger than a batch: rows that others hold wait for the next run.
-- By id and not by ctid, which is not unique over partitions; the range again, should an id not be unique either.
DELETE FROM /* live */ celery_taskmeta
WHERE id = ANY (ARRAY(
    SELECT id
    FROM /* live */ celery_taskmeta
    WHERE /* by */ date_done >= :low AND /* by */ date_done < :high AND /* due */ (date_done < :cutoff)
    LIMIT :size
    FOR UPDATE SKIP LOCKED
))
AND /* by */ date_done >= :low AND /* by */ date_done < :high AND /* due */ (date_done < :cutoff);
