-- Walking a live table forward in ranges of one column: date_done where an index leads on it, else id.

-- name: find_first
-- Where the walk begins.
SELECT min(/* by */ date_done) FROM /* live */ celery_taskmeta WHERE /* by */ date_done < :end;

-- name: find_last
-- Where a walk by id ends: what is stored from now on is not due.
SELECT max(/* by */ id) FROM /* live */ celery_taskmeta;

-- name: find_bound
-- The end of a range of so many rows, from the index alone. Nothing: the range reaches the end of the walk.
SELECT /* by */ date_done
FROM /* live */ celery_taskmeta
WHERE /* by */ date_done >= :low AND /* by */ date_done < :end
ORDER BY /* by */ date_done
OFFSET :size LIMIT 1;

-- name: find_next
-- Where more rows than a batch share one value: the value after it.
SELECT min(/* by */ date_done)
FROM /* live */ celery_taskmeta
WHERE /* by */ date_done > :low AND /* by */ date_done < :end;

-- name: count_left
-- What other sessions' locks kept from the batch.
SELECT count(*)
FROM /* live */ celery_taskmeta
WHERE /* by */ date_done >= :low AND /* by */ date_done < :high AND /* due */ (date_done < :cutoff);

-- name: find_oldest_of_range
-- Whether a walk by id has left behind everything that finished before the cutoff.
SELECT min(date_done)
FROM /* live */ celery_taskmeta
WHERE /* by */ date_done >= :low AND /* by */ date_done < :high;

-- name: count_due
-- How much there is to do, and from when the oldest of it is.
SELECT count(*) AS rows, min(date_done) AT TIME ZONE :zone AS oldest
FROM /* live */ celery_taskmeta
WHERE date_done < :latest AND /* due */ (date_done < :cutoff);

-- name: estimate_due
-- The planner's guess, where counting takes too long.
EXPLAIN (FORMAT JSON)
SELECT FROM /* live */ celery_taskmeta
WHERE date_done < :latest AND /* due */ (date_done < :cutoff);

-- name: find_oldest
-- Age of the oldest finished result, in seconds. What a walk has just emptied is not looked through again: its index
-- entries stay until a vacuum.
SELECT extract(epoch FROM now() - min(date_done) AT TIME ZONE :zone)::float8
FROM /* live */ celery_taskmeta
WHERE date_done >= :since;
