-- Keeping what another backend archives: its rows, and what must be known should a run end in the middle.

-- name: make_register
-- Which archives there are here, and whose.
CREATE TABLE IF NOT EXISTS /* register */ backendops_archives (
    source text NOT NULL,
    holds text NOT NULL,
    live text NOT NULL,
    archive text NOT NULL PRIMARY KEY
);

-- name: make_journal
-- Batches on their way, in or out: written with the rows, gone when it is settled where they are.
CREATE TABLE IF NOT EXISTS /* journal */ backendops_moves (
    batch text NOT NULL PRIMARY KEY,
    source text NOT NULL,
    archive text NOT NULL,
    restoring boolean NOT NULL,
    begun_at timestamp with time zone NOT NULL DEFAULT now(),
    keys text[] NOT NULL,
    first_done_at timestamp with time zone NOT NULL,
    last_done_at timestamp with time zone NOT NULL,
    fingerprints text[] NOT NULL
);

-- name: find_register
-- Asked for first: making it needs CREATE on the schema, using it does not.
SELECT to_regclass(CAST(:register AS text)) IS NOT NULL AND to_regclass(CAST(:journal AS text)) IS NOT NULL;

-- name: register
-- A name belongs to the source that came first.
INSERT INTO /* register */ backendops_archives (source, holds, live, archive) VALUES (:source, :holds, :live, :archive)
ON CONFLICT (archive) DO NOTHING;

-- name: list_archives
-- Ours, and those whose names we must not take.
SELECT source, holds, live, archive FROM /* register */ backendops_archives ORDER BY archive;

-- name: insert_rows
-- One array for each column: one statement whatever the number of rows, and every byte as it is.
INSERT INTO /* archive */ celery_taskmeta_archive (/* columns */ id, task_id /* end */, done_at)
SELECT /* columns */ id, task_id /* end */, done_at
FROM unnest(/* arrays */ CAST(:v0 AS bigint[]), CAST(:v1 AS text[]) /* end */, CAST(:done_at AS timestamptz[]))
    AS given (/* columns */ id, task_id /* end */, done_at);

-- name: begin_move
-- In the transaction that puts the rows in: they are there, or neither is.
INSERT INTO /* journal */ backendops_moves
    (batch, source, archive, restoring, keys, first_done_at, last_done_at, fingerprints)
VALUES (:batch, :source, :archive, :restoring, CAST(:keys AS text[]), :first, :last, CAST(:fingerprints AS text[]));

-- name: end_move
-- Settled: nothing is left to find out.
DELETE FROM /* journal */ backendops_moves WHERE batch = :batch;

-- name: list_moves
-- What an earlier run of this source left on its way, oldest first.
SELECT batch, archive, restoring, keys, first_done_at, last_done_at, fingerprints
FROM /* journal */ backendops_moves
WHERE source = :source
ORDER BY begun_at, batch;

-- name: list_times
-- A partition that one of these touches is not retired before the batch is settled.
SELECT first_done_at, last_done_at FROM /* journal */ backendops_moves WHERE archive = :archive;

-- name: read_rows
-- What the archive has of these ids, within the time that the batch covers: few partitions, by the index on the id. Rows
-- without an id, which Celery never writes, are looked for only where one of them is meant: no index has them.
SELECT /* columns */ id, task_id /* end */, done_at, tableoid::text || ' ' || ctid::text
FROM /* archive */ celery_taskmeta_archive
WHERE (/* key */ task_id = ANY (CAST(:keys AS text[])) OR (/* key */ task_id IS NULL AND CAST(:nameless AS boolean)))
  AND done_at >= :first AND done_at <= :last;

-- name: take_out
-- Each row by its place, which the same transaction has just read.
DELETE FROM /* archive */ celery_taskmeta_archive AS archive
USING unnest(CAST(:keys AS text[]), CAST(:tables AS oid[]), CAST(:places AS tid[])) AS gone (key, part, place)
WHERE (archive./* key */ task_id = gone.key
       OR (archive./* key */ task_id IS NULL AND gone.key IS NULL AND CAST(:nameless AS boolean)))
  AND archive.done_at >= :first AND archive.done_at <= :last
  AND archive.tableoid = gone.part AND archive.ctid = gone.place;

-- name: count_readable
-- How many of the next rows that are meant may be in memory at once, by their sizes, for which no payload is read.
SELECT count(*)
FROM (
    SELECT sum(bytes) OVER (ORDER BY done_at DESC, key DESC ROWS UNBOUNDED PRECEDING) AS so_far
    FROM (
        SELECT done_at, /* key */ task_id AS key, /* bytes */ (octet_length(result)) AS bytes
        FROM /* archive */ celery_taskmeta_archive
        WHERE /* meant */ (done_at >= :since) AND (done_at, /* key */ task_id) < (:below, :before)
        ORDER BY done_at DESC, /* key */ task_id DESC
        LIMIT :size
    ) AS next_rows
) AS counted
WHERE so_far <= :most;

-- name: find_rows
-- What is meant, the newest first.
SELECT /* columns */ id, task_id /* end */, done_at, tableoid::text || ' ' || ctid::text
FROM /* archive */ celery_taskmeta_archive
WHERE /* meant */ (done_at >= :since) AND (done_at, /* key */ task_id) < (:below, :before)
ORDER BY done_at DESC, /* key */ task_id DESC
LIMIT :size;
