-- expire and archive: look without a lock, then copy and delete one fixed set of ids in one short transaction.
-- Whether a row is due is decided by the program, which knows the time zones that SQLite does not.

-- name: look_by_id
-- Without an index on date_done: each row is read once per run, in id order.
SELECT id, date_done, /* status */ status, /* task */ name, /* queue */ queue
FROM /* live */ celery_taskmeta
WHERE id > :after_id
ORDER BY id
LIMIT :rows;

-- name: look_by_date
-- With the index: only what is old enough is read, the kept ones among it once per run.
SELECT id, date_done, /* status */ status, /* task */ name, /* queue */ queue
FROM /* live */ celery_taskmeta
WHERE (date_done, id) > (:after_date, :after_id)
  AND date_done < :latest
ORDER BY date_done, id
LIMIT :rows;

-- name: look_again
-- Under the write lock: a task that ran again since the look has another date_done and stays.
SELECT id, date_done, /* status */ status, /* task */ name, /* queue */ queue
FROM /* live */ celery_taskmeta
WHERE id IN (SELECT value FROM json_each(:ids));

-- name: copy_batch
-- The batch is [[id, done_at], ...] in JSON; CROSS JOIN makes SQLite walk the batch and look each row up by its id.
INSERT INTO /* archive */ celery_taskmeta_archive (/* columns */ id, task_id /* end */, done_at, archived_at)
SELECT /* live_columns */ live.id, live.task_id /* end */, json_extract(batch.value, '$[1]'), :archived_at
FROM json_each(:batch) AS batch
CROSS JOIN /* live */ celery_taskmeta AS live
WHERE live.id = json_extract(batch.value, '$[0]');

-- name: delete_batch
-- The ids that were copied, and no others.
DELETE FROM /* live */ celery_taskmeta
WHERE id IN (SELECT json_extract(value, '$[0]') FROM json_each(:batch));

-- name: oldest_by_date
SELECT date_done, /* status */ status
FROM /* live */ celery_taskmeta
WHERE date_done > ''
ORDER BY date_done
LIMIT 1;

-- name: oldest_by_id
-- Without an index on date_done the first dated row by id is near enough: ids follow time.
SELECT date_done, /* status */ status
FROM /* live */ celery_taskmeta
WHERE date_done > ''
ORDER BY id
LIMIT 1;

-- name: newest_by_date
-- What stays for being among the newest, from the end of the index.
SELECT date_done, id, /* status */ status
FROM /* live */ celery_taskmeta
WHERE date_done > '' AND (date_done, id) < (:before_date, :before_id)
ORDER BY date_done DESC, id DESC
LIMIT :rows;

-- name: newest_by_id
-- The same without an index on date_done: ids follow time.
SELECT date_done, id, /* status */ status
FROM /* live */ celery_taskmeta
WHERE id < :before_id
ORDER BY id DESC
LIMIT :rows;

-- name: sample_names
-- Whether Celery stores what rules ask for: only with result_extended.
SELECT count(*) AS rows, count(name) AS names, count(queue) AS queues
FROM (
    SELECT /* task */ name AS name, /* queue */ queue AS queue
    FROM /* live */ celery_taskmeta
    WHERE date_done > ''
    ORDER BY id DESC
    LIMIT :rows
);
