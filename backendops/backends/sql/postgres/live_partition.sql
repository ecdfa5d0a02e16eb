-- A live table that is partitioned by us: what it is made of, the next partitions, the way out of old ones.

-- name: read_live
-- Ours is what says so in its comment; anything else that is partitioned is somebody's own.
SELECT
    c.relkind::text AS kind,
    pg_catalog.pg_get_partkeydef(c.oid) AS partition_key,
    obj_description(c.oid, 'pg_class') AS comment,
    pg_catalog.pg_get_userbyid(c.relowner) AS owner,
    (SELECT con.convalidated FROM pg_catalog.pg_constraint AS con
     WHERE con.conrelid = c.oid AND con.conname = 'backendops_bound') AS bound_validated,
    (SELECT pg_catalog.pg_get_constraintdef(con.oid) FROM pg_catalog.pg_constraint AS con
     WHERE con.conrelid = c.oid AND con.conname = 'backendops_bound') AS bound
FROM pg_catalog.pg_class AS c
WHERE c.oid = CAST(:oid AS oid);

-- name: list_leaves
-- Children of a partitioned table, or of a plain one whose conversion is being undone.
SELECT
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS bounds,
    i.inhdetachpending AS detach_pending,
    greatest(c.reltuples, 0)::bigint AS rows,
    pg_catalog.pg_total_relation_size(c.oid) AS bytes,
    obj_description(c.oid, 'pg_class') AS comment,
    EXISTS (
        SELECT FROM pg_catalog.pg_constraint AS con
        WHERE con.conrelid = c.oid AND con.conname = 'backendops_bound'
    ) AS has_bound,
    EXISTS (
        SELECT
        FROM pg_catalog.pg_index AS x
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0]
        WHERE x.indrelid = c.oid AND x.indisunique AND x.indisvalid AND x.indnkeyatts = 1 AND x.indpred IS NULL
            AND a.attname = CAST(:key AS name)
    ) AS key_is_unique
FROM pg_catalog.pg_inherits AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.inhparent = CAST(:oid AS oid)
ORDER BY c.oid;

-- name: read_storage
-- A table's storage parameters and its TOAST's as SQL, where it has any: LIKE leaves them out.
SELECT string_agg(format('%s%s = %L', o.place, o.option_name, o.option_value), ', ')
FROM (
    SELECT '' AS place, mine.*
    FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL pg_options_to_table(c.reloptions) AS mine
    WHERE c.oid = CAST(:oid AS oid)
    UNION ALL
    SELECT 'toast.', its.*
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_class AS toast ON toast.oid = c.reltoastrelid
    CROSS JOIN LATERAL pg_options_to_table(toast.reloptions) AS its
    WHERE c.oid = CAST(:oid AS oid)
) AS o;

-- name: read_sequence
-- Celery's own sequence, whose numbers run ahead of the rows: beside the table, or on the search path.
SELECT CASE WHEN has_sequence_privilege(s.oid, 'SELECT,USAGE') THEN pg_sequence_last_value(s.oid) END AS last_value
FROM pg_catalog.pg_class AS s
WHERE s.relkind = 'S' AND s.oid = coalesce(
    to_regclass(quote_ident(CAST(:schema AS text)) || '.' || quote_ident(CAST(:sequence AS text))),
    to_regclass(quote_ident(CAST(:sequence AS text)))
);

-- name: read_newest_id
-- Where there is no such sequence, or it may not be read.
SELECT max(id) FROM /* live */ celery_taskmeta;

-- name: read_result_before
-- For the rate: when the result was finished that is so many ids back. Ids follow time, roughly.
SELECT id, date_done AT TIME ZONE :zone AS done
FROM /* live */ celery_taskmeta
WHERE id <= :id AND date_done IS NOT NULL
ORDER BY id DESC
LIMIT 1;

-- name: read_oldest_result
-- For the rate where so few results are kept that none is that far back, and for whether there is one to rely on.
SELECT id, date_done AT TIME ZONE :zone AS done
FROM /* live */ celery_taskmeta
WHERE date_done IS NOT NULL
ORDER BY id
LIMIT 1;

-- name: quiet
-- Waits for autovacuum (which gives way after a second) while readers and writers go on, so that nothing is left to
-- wait for under the exclusive lock.
LOCK TABLE ONLY /* leaf */ celery_taskmeta_first IN SHARE UPDATE EXCLUSIVE MODE;

-- name: lock_live
-- Everybody comes to a partition by way of its parent: this one lock stops them all. The clock of the hold begins when
-- it returns.
LOCK TABLE ONLY /* live */ celery_taskmeta IN ACCESS EXCLUSIVE MODE;

-- name: hurry
-- Nothing that is done under the exclusive lock may wait or take long: better to let go and try again. Nor does its
-- commit wait for a standby, which may be slow: whatever the application commits after it is in the log behind it.
SELECT
    set_config('lock_timeout', '30ms', true),
    set_config('statement_timeout', '1s', true),
    set_config(
        'synchronous_commit',
        CASE current_setting('synchronous_commit') WHEN 'off' THEN 'off' ELSE 'local' END,
        true
    );

-- name: rename_leaf
-- What was the tail is an ordinary partition from now on.
ALTER TABLE /* leaf */ celery_taskmeta_tail RENAME TO /* name */ celery_taskmeta_i1000000;

-- name: make_leaf
-- Like the table that Celery made, its primary key and the uniqueness of the task id included.
CREATE TABLE /* leaf */ celery_taskmeta_i1000000 (LIKE /* model */ celery_taskmeta_first INCLUDING ALL EXCLUDING COMMENTS);

-- name: set_storage
-- How autovacuum treats the table, and how full its pages are.
ALTER TABLE /* leaf */ celery_taskmeta_i1000000 SET /* storage */ (autovacuum_vacuum_scale_factor = '0.01');

-- name: own_leaf
-- Whoever owns the table owns its partitions.
ALTER TABLE /* leaf */ celery_taskmeta_i1000000 OWNER TO /* owner */ celery;

-- name: attach_ids
-- An empty leaf: nothing is read.
ALTER TABLE /* live */ celery_taskmeta ATTACH PARTITION /* leaf */ celery_taskmeta_i1000000
FOR VALUES FROM (:lower) TO (:upper);

-- name: attach_tail
-- The last leaf has no end, so that storing a result never fails because nobody made the next partition.
ALTER TABLE /* live */ celery_taskmeta ATTACH PARTITION /* leaf */ celery_taskmeta_tail
FOR VALUES FROM (:lower) TO (MAXVALUE);

-- name: attach_dates
-- The default partition is not read: its validated CHECK says that nothing of this time is in it.
ALTER TABLE /* live */ celery_taskmeta ATTACH PARTITION /* leaf */ celery_taskmeta_p2026_12
FOR VALUES FROM (:lower) TO (:upper);

-- name: attach_as_it_was
-- The bounds that its comment remembers.
ALTER TABLE /* live */ celery_taskmeta ATTACH PARTITION /* leaf */ celery_taskmeta_p2026_12
/* bounds */ FOR VALUES FROM ('2026-12-01') TO ('2027-01-01') /* end */;

-- name: detach
-- Plain, with the lock held already: what was just read of the leaf stays true until the commit.
ALTER TABLE /* live */ celery_taskmeta DETACH PARTITION /* leaf */ celery_taskmeta_i1000000;

-- name: bound_dates
-- Not validated yet, so nothing is read under the exclusive lock; new rows obey it at once.
ALTER TABLE /* leaf */ celery_taskmeta_default
ADD CONSTRAINT backendops_bound CHECK (date_done IS NULL OR date_done < :bound) NOT VALID;

-- name: bound_dates_around
-- The same for one period alone, which is about to have, or have again, a partition of its own.
ALTER TABLE /* leaf */ celery_taskmeta_default
ADD CONSTRAINT backendops_bound CHECK (date_done IS NULL OR date_done < :lower OR date_done >= :upper) NOT VALID;

-- name: bound_ids
-- The same by id.
ALTER TABLE /* leaf */ celery_taskmeta
ADD CONSTRAINT backendops_bound CHECK (id < :bound) NOT VALID;

-- name: bound_ids_between
-- The same for a partition that gets an end: nothing but this tells of its beginning while it is detached.
ALTER TABLE /* leaf */ celery_taskmeta_tail
ADD CONSTRAINT backendops_bound CHECK (id >= :lower AND id < :bound) NOT VALID;

-- name: bound_within
-- A detached partition's own time: read now, while nobody but us uses it.
ALTER TABLE /* leaf */ celery_taskmeta_p2026_12
ADD CONSTRAINT backendops_bound CHECK (date_done IS NOT NULL AND date_done >= :lower AND date_done < :upper);

-- name: is_bound
-- Is there anything to take away?
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_constraint AS con
    WHERE con.conrelid = CAST(:oid AS oid) AND con.conname = 'backendops_bound'
);

-- name: list_bounded
-- Every live table and partition on which a run that was killed left it.
SELECT
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    pg_catalog.pg_get_userbyid(c.relowner) AS owner,
    pg_has_role(c.relowner, 'USAGE') AS is_owner,
    pg_catalog.pg_get_constraintdef(con.oid) AS bound
FROM pg_catalog.pg_constraint AS con
JOIN pg_catalog.pg_class AS c ON c.oid = con.conrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE con.conname = 'backendops_bound' AND EXISTS (
    SELECT
    WHERE c.oid = ANY (CAST(:oids AS oid[]))
    UNION ALL
    SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = c.oid AND i.inhparent = ANY (CAST(:oids AS oid[]))
)
ORDER BY n.nspname, c.relname;

-- name: validate_bound
-- Reads the whole table while everybody goes on reading and writing.
ALTER TABLE /* leaf */ celery_taskmeta VALIDATE CONSTRAINT backendops_bound;

-- name: drop_bound
-- Its work is done, or its conversion was cut short: left behind it would refuse results one day.
ALTER TABLE /* leaf */ celery_taskmeta DROP CONSTRAINT IF EXISTS backendops_bound;

-- name: is_empty
-- Read under the lock.
SELECT NOT EXISTS (SELECT FROM /* leaf */ celery_taskmeta_tail);

-- name: is_untouched
-- Has nothing ever come to it? Told without reading what may be millions of dead rows.
SELECT pg_catalog.pg_relation_size(CAST(:oid AS oid)::regclass) = 0;

-- name: has_dates
-- Results of a time that has a partition of its own, or is about to have one.
SELECT EXISTS (
    SELECT FROM /* leaf */ celery_taskmeta_default
    WHERE date_done >= CAST(:lower AS timestamp) AND date_done < CAST(:upper AS timestamp)
);

-- name: move_out_of_default
-- For an operator: what stands in the way of a partition of that time.
WITH moved AS (
    DELETE FROM /* default */ celery_taskmeta_default
    WHERE date_done >= :lower AND date_done < :upper
    RETURNING /* columns */ id, task_id, status, result, date_done /* end */
)
INSERT INTO /* leaf */ celery_taskmeta_p2026_12 (/* columns */ id, task_id, status, result, date_done /* end */)
SELECT /* columns */ id, task_id, status, result, date_done /* end */ FROM moved;

-- name: read_ages
-- From the index on date_done: when the newest result of a leaf finished, and whether one has not finished yet.
SELECT
    (SELECT max(date_done) FROM /* leaf */ celery_taskmeta_i1000000) AS newest,
    (SELECT min(date_done) FROM /* leaf */ celery_taskmeta_i1000000) AS oldest,
    EXISTS (SELECT FROM /* leaf */ celery_taskmeta_i1000000 WHERE date_done IS NULL) AS unfinished;

-- name: count_unfinished
-- For the sentence that says why a leaf stays; a thousand are as good a reason as all of them.
SELECT count(*) FROM (SELECT FROM /* leaf */ celery_taskmeta_i1000000 WHERE date_done IS NULL LIMIT 1000) AS unfinished;

-- name: find_twins_by_id
-- Two workers that store one task at the same moment, on both sides of a boundary: no index of one leaf can forbid it.
SELECT /* key */ task_id AS key
FROM /* live */ celery_taskmeta
WHERE id >= :low AND id < :high AND /* key */ task_id IS NOT NULL
GROUP BY /* key */ task_id
HAVING count(*) > 1
LIMIT 5;

-- name: find_twins_by_date
-- The same around a boundary in time.
SELECT /* key */ task_id AS key
FROM /* live */ celery_taskmeta
WHERE date_done >= CAST(:low AS timestamp) AND date_done < CAST(:high AS timestamp) AND /* key */ task_id IS NOT NULL
GROUP BY /* key */ task_id
HAVING count(*) > 1
LIMIT 5;

-- name: find_unfinished_twins
-- A task that is unfinished in the default partition and finished in another one.
SELECT d./* key */ task_id AS key
FROM (
    SELECT /* key */ task_id FROM /* leaf */ celery_taskmeta_default WHERE date_done IS NULL LIMIT 10000
) AS d
WHERE EXISTS (
    SELECT FROM /* live */ celery_taskmeta AS o
    WHERE o./* key */ task_id = d./* key */ task_id AND o.tableoid <> CAST(:oid AS oid)
)
LIMIT 5;
