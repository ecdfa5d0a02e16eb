-- Putting archived results back among the live ones.

-- name: find_meant
-- The next archived results that are meant, the newest first, whether the live table lacks a column that one needs, and
-- what retention rules ask for.
SELECT
    tableoid,
    ctid::text AS place,
    /* key */ task_id AS key,
    done_at,
    /* drifted */ (false) AS drifted,
    /* asked */ status AS state, name AS task, queue AS queue /* end */
FROM /* archive */ celery_taskmeta_archive
WHERE /* meant */ (done_at >= :since) AND (done_at, /* key */ task_id) < (:below, :before)
ORDER BY done_at DESC, /* key */ task_id DESC
LIMIT :size;

-- name: count_meant
-- For a look beforehand.
SELECT count(*) AS rows, min(done_at) AS oldest FROM /* archive */ celery_taskmeta_archive WHERE /* meant */ (done_at >= :since);

-- name: list_meant
-- Which ids these are, where ids were asked for: never more than that.
SELECT DISTINCT /* key */ task_id FROM /* archive */ celery_taskmeta_archive WHERE /* meant */ (done_at >= :since);

-- name: put_back
-- One statement, so no result is ever in both or in neither; an id that is live by now fails it as a whole. An id below
-- the sequence's is Celery's own of old and kept where it is free; one above it Celery would hand out again.
WITH meant AS (
    SELECT *
    FROM unnest(CAST(:tables AS oid[]), CAST(:places AS tid[]), CAST(:keys AS text[]), CAST(:moments AS timestamptz[]))
        AS m (part, place, key, moment)
), moved AS (
    DELETE FROM /* archive */ celery_taskmeta_archive AS archive
    USING meant
    WHERE archive./* key */ task_id = meant.key AND archive.done_at = meant.moment
      AND archive.tableoid = meant.part AND archive.ctid = meant.place
      AND NOT EXISTS (SELECT FROM /* live */ celery_taskmeta AS live WHERE live./* key */ task_id = meant.key)
    RETURNING archive.id, /* archived */ archive.task_id, archive.status /* end */
), numbered AS (
    SELECT *, row_number() OVER (PARTITION BY id) AS turn FROM moved
)
INSERT INTO /* live */ celery_taskmeta (id, /* columns */ task_id, status /* end */)
SELECT
    CASE WHEN id <= :used AND turn = 1 AND id NOT IN (SELECT live.id FROM /* live */ celery_taskmeta AS live WHERE live.id = numbered.id)
         THEN id ELSE nextval(CAST(CAST(:sequence AS oid) AS regclass)) END,
    /* columns */ task_id, status /* end */
FROM numbered
RETURNING /* key */ task_id;

-- name: insert_back
-- From an archive elsewhere: its copy stays until this is committed and read back, so a conflict may simply be left.
WITH given AS (
    SELECT *, row_number() OVER (PARTITION BY id) AS turn
    FROM unnest(/* arrays */ CAST(:ids AS bigint[]), CAST(:v1 AS text[]), CAST(:v2 AS text[]) /* end */)
        AS g (id, /* columns */ task_id, status /* end */)
)
INSERT INTO /* live */ celery_taskmeta (id, /* columns */ task_id, status /* end */)
SELECT
    CASE WHEN id <= :used AND turn = 1 AND id NOT IN (SELECT live.id FROM /* live */ celery_taskmeta AS live WHERE live.id = given.id)
         THEN id ELSE nextval(CAST(CAST(:sequence AS oid) AS regclass)) END,
    /* values */ task_id, status /* end */
FROM given
WHERE NOT EXISTS (SELECT FROM /* live */ celery_taskmeta AS live WHERE live./* key */ task_id = given./* key */ task_id)
ON CONFLICT DO NOTHING
RETURNING /* key */ task_id;

-- name: look_up
-- The live results of these ids.
SELECT /* columns */ id, task_id, status, result, date_done /* end */, coalesce(date_done AT TIME ZONE :zone, now()), xmin::text
FROM /* live */ celery_taskmeta
WHERE /* key */ task_id = ANY (CAST(:keys AS text[]));

-- name: find_sequence
-- Celery's own, beside the table or on the search path; else one that the column has. Its last value, 0 before the first.
SELECT sequence AS oid, sequence::regclass::text AS name, has_sequence_privilege(sequence, 'USAGE') AS can_use,
       CASE WHEN has_sequence_privilege(sequence, 'USAGE') THEN coalesce(pg_sequence_last_value(sequence), 0) END AS used
FROM (
    SELECT coalesce(
        to_regclass(quote_ident(CAST(:schema AS text)) || '.' || CAST(:celerys AS text)),
        to_regclass(CAST(:celerys AS text)),
        CAST(pg_get_serial_sequence(CAST(:live AS text), 'id') AS regclass)
    )::oid AS sequence
) AS found
WHERE sequence IS NOT NULL;
