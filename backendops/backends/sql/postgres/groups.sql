-- Saved groups: a row of theirs may go when the tasks it lists are finished or gone.

-- name: list_groups
-- Those of a range that are due by their date and whose list can be read, a page at a time. How long a payload is and
-- what it begins with is known without reading it.
SELECT id, octet_length(result) AS size, date_done < :margin AS past_margin
FROM /* live */ celery_tasksetmeta
WHERE /* range */ (date_done >= :low AND date_done < :high)
  AND id > :last_id AND /* dated */ (date_done < :cutoff)
  AND substring(result FROM 1 FOR 1) = decode('5b', 'hex')
ORDER BY id
LIMIT :page;

-- name: read_payloads
-- Few at once: one may list ten thousand members.
SELECT id, result FROM /* live */ celery_tasksetmeta WHERE id = ANY (CAST(:ids AS bigint[]));

-- name: find_unfinished
-- By Celery's unique index. A state that is not one of celery.states.READY_STATES is still to come to an end; a row
-- that is not there is gone.
SELECT task_id
FROM /* task */ celery_taskmeta
WHERE task_id = ANY (CAST(:ids AS text[]))
  AND (date_done IS NULL OR status IS NULL OR status NOT IN ('SUCCESS', 'FAILURE', 'REVOKED'));
