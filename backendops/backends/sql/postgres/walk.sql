-- Walking a live table forward in ranges of one column: date_done where an index leads on it, else id.

-- name: find_first
-- Where the walk begins.
SELECT min(/* by */ date_done) FROM /* live */ celery_taskmeta WHERE /* by */ date_done < :end;

-- name: find_last
-- Where a walk by id ends: what is stored from now on is not due.
SELECT max(/* by */ id) FROM /* live */ celery_taskmeta;

-- name: find_bounds
-- The ends of the next ranges of so many rows, one after the other, from the index alone; up to the end of the walk, or
-- to where more rows than that share one value. Nothing: what is left is less.
WITH RECURSIVE bounds (bound, ranges) AS (
    -- One level deeper, or the rows that are stepped over would get the 1, too: a fifth of the time.
    SELECT first.bound, 1
    FROM (
        SELECT /* by */ date_done AS bound
        FROM /* live */ celery_taskmeta
        WHERE /* by */ date_done >= :low AND /* by */ date_done < :end
        ORDER BY /* by */ date_done
        OFFSET :size LIMIT 1
    ) AS first
    UNION ALL
    SELECT following.bound, ranges + 1
    FROM bounds
    CROSS JOIN LATERAL (
        SELECT /* by */ date_done AS bound
        FROM /* live */ celery_taskmeta
        WHERE /* by */ date_done >= bounds.bound AND /* by */ date_done < :end
        ORDER BY /* by */ date_done
        OFFSET :size LIMIT 1
    ) AS following
    WHERE ranges < :ranges AND following.bound > bounds.bound
)
SELECT bound FROM bounds ORDER BY ranges;

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
-- How much there is to do, from when the oldest of it is, and what has no age (-infinity is before every cutoff).
SELECT
    count(*) FILTER (WHERE isfinite(date_done)) AS rows,
    min(date_done) FILTER (WHERE isfinite(date_done)) AT TIME ZONE :zone AS oldest,
    count(*) FILTER (WHERE NOT isfinite(date_done)) AS endless
FROM /* live */ celery_taskmeta
WHERE date_done < :latest AND (/* due */ (date_done < :cutoff) OR date_done = '-infinity');

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
WHERE date_done >= :since AND isfinite(date_done);

-- name: find_newest_by_date
-- The last one of those that are kept whatever their age: from the end of the index, so many entries.
SELECT date_done
FROM /* live */ celery_taskmeta
WHERE date_done IS NOT NULL AND /* finished */ (status IN ('SUCCESS', 'FAILURE', 'REVOKED'))
ORDER BY date_done DESC
OFFSET :keep - 1 LIMIT 1;

-- name: find_newest_by_id
-- Without an index on date_done the oldest of the last so many ids: at least as many finished since. Ids follow time, so
-- hardly more are kept.
SELECT CASE WHEN count(*) = :keep THEN min(date_done) END
FROM (
    SELECT date_done
    FROM /* live */ celery_taskmeta
    WHERE date_done IS NOT NULL AND /* finished */ (status IN ('SUCCESS', 'FAILURE', 'REVOKED'))
    ORDER BY id DESC
    LIMIT :keep
) AS newest;

-- name: sample_names
-- Whether Celery stores what rules ask for: only with result_extended. Rows that began lately stand for all.
SELECT count(*) AS rows, count(/* name */ name) AS names, count(/* queue */ queue) AS queues
FROM (
    SELECT * FROM /* live */ celery_taskmeta
    WHERE date_done IS NOT NULL
    ORDER BY id DESC
    LIMIT :rows
) AS newest;
