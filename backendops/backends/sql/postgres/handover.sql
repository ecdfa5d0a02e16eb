-- Reading due results for an archive outside this database, and removing them once they are kept there.

-- name: find_end
-- The last of the next rows, due or not: what is kept is walked over in bounded steps too. By the walked column and id,
-- so that many rows of one moment are cut as well; and no more than may be in memory at once, by their sizes, for which
-- no payload is read. How many that are. Nothing: the walk is over.
SELECT walked AS by, id, nth AS rows
FROM (
    SELECT walked, id, row_number() OVER in_turn AS nth, sum(bytes) OVER in_turn AS so_far
    FROM (
        SELECT /* by */ date_done AS walked, id, /* bytes */ (octet_length(result)) AS bytes
        FROM /* live */ celery_taskmeta
        WHERE /* by */ date_done >= :low AND /* by */ date_done < :end AND (/* by */ date_done, id) > (:low, :after)
        ORDER BY /* by */ date_done, id
        LIMIT :size
    ) AS next_rows
    WINDOW in_turn AS (ORDER BY walked, id)
) AS counted
WHERE nth = 1 OR so_far <= :most
ORDER BY walked DESC, id DESC
LIMIT 1;

-- name: read_due
-- Nothing is locked: xmin says at the removal whether a row is still the one that was read. A date without an end
-- (infinity) has no period, and stays.
SELECT /* columns */ id, task_id, status, result, date_done /* end */, date_done AT TIME ZONE :zone, xmin::text
FROM /* live */ celery_taskmeta
WHERE /* by */ date_done >= :low AND /* by */ date_done <= :high
  AND (/* by */ date_done, id) > (:low, :after) AND (/* by */ date_done, id) <= (:high, :last)
  AND /* due */ (date_done < :cutoff) AND isfinite(date_done)
ORDER BY /* by */ date_done, id;

-- name: find_last
-- Where a walk by id ends: what is stored from now on is not due.
SELECT max(/* by */ id) FROM /* live */ celery_taskmeta;

-- name: read_again
-- The live rows of these ids as they are now, to be compared with a copy that an earlier run made.
SELECT /* columns */ id, task_id, status, result, date_done /* end */, date_done AT TIME ZONE :zone, xmin::text
FROM /* live */ celery_taskmeta
WHERE id = ANY (CAST(:ids AS bigint[]));

-- name: remove_same
-- Each row by its id and its version: one that was rewritten since it was read, or that another session holds, stays.
WITH meant AS (
    SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:versions AS text[])) AS m (id, version)
), held AS (
    SELECT live.id, meant.version
    FROM /* live */ celery_taskmeta AS live
    JOIN meant ON meant.id = live.id AND meant.version = live.xmin::text
    FOR UPDATE OF live SKIP LOCKED
)
DELETE FROM /* live */ celery_taskmeta AS live
USING held
WHERE live.id = held.id AND live.xmin::text = held.version
RETURNING live.id, held.version;

-- name: find_present
-- Of those that were not removed, the ones that are still here. An id alone says little: in another database, or once the
-- table was made anew, it is another result's, and the archive has the only copy of ours.
SELECT id, /* key */ task_id AS key FROM /* live */ celery_taskmeta WHERE id = ANY (CAST(:ids AS bigint[]));

-- name: may_identify
-- Everybody may, unless the privilege was taken away: then nothing is known.
SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE');

-- name: identify
-- What tells this database from every other: the cluster, of which a standby is a part, and the database in it.
SELECT c.system_identifier || '/' || d.oid
FROM pg_catalog.pg_control_system() AS c, pg_catalog.pg_database AS d
WHERE d.datname = current_database();
