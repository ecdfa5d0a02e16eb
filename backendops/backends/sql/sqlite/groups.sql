-- Saved groups: a row of theirs may go when the tasks it lists are finished or gone. All of it is read without a lock.

-- name: list_payloads
-- How long a payload is and what it begins with (0x5b is [) is known without reading it.
SELECT id, length(result) AS size, substr(result, 1, 1) = x'5b' AS is_json
FROM /* live */ celery_tasksetmeta
WHERE id IN (SELECT value FROM json_each(:ids));

-- name: read_payloads
-- Few at once: one may list ten thousand members.
SELECT id, result
FROM /* live */ celery_tasksetmeta
WHERE id IN (SELECT value FROM json_each(:ids));

-- name: find_unfinished
-- By Celery's unique index. A state that is not one of celery.states.READY_STATES is still to come to an end; a row
-- that is not there is gone.
SELECT task_id
FROM /* task */ celery_taskmeta
WHERE task_id IN (SELECT value FROM json_each(:ids))
  AND (date_done IS NULL OR status IS NULL OR status NOT IN ('SUCCESS', 'FAILURE', 'REVOKED'));
