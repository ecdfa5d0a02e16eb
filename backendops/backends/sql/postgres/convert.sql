-- Making a live table a partitioned one and back, without copying it and without stopping whoever writes to it.

-- name: inspect
-- Everything that a conversion could break, or that could keep it from ending.
SELECT
    c.relkind::text AS kind,
    c.relpersistence::text AS persistence,
    c.relispartition AS is_partition,
    c.relrowsecurity OR EXISTS (SELECT FROM pg_catalog.pg_policy AS p WHERE p.polrelid = c.oid) AS row_security,
    c.relreplident::text AS replica_identity,
    c.reloftype <> 0 AS is_typed,
    pg_catalog.pg_get_userbyid(c.relowner) AS owner,
    current_user AS role,
    pg_has_role(c.relowner, 'USAGE') AS is_owner,
    has_schema_privilege(c.relnamespace, 'CREATE') AS may_create,
    has_schema_privilege(c.relowner, c.relnamespace, 'CREATE') AS owner_may_create,
    pg_catalog.pg_relation_size(c.oid) AS heap_bytes,
    greatest(c.reltuples, 0)::bigint AS rows,
    obj_description(c.oid, 'pg_class') AS comment,
    (SELECT t.spcname FROM pg_catalog.pg_tablespace AS t WHERE t.oid = c.reltablespace) AS tablespace,
    (SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute AS a
     WHERE a.attrelid = c.oid AND a.attname = 'id') AS id_type,
    EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = c.oid AND (a.attidentity <> '' OR a.attgenerated <> '') AND NOT a.attisdropped
    ) AS has_identity,
    ARRAY(SELECT t.tgname::text FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)
    AS triggers,
    ARRAY(SELECT k.conrelid::regclass::text || '.' || k.conname FROM pg_catalog.pg_constraint AS k
          WHERE k.contype = 'f' AND (k.conrelid = c.oid OR k.confrelid = c.oid)) AS foreign_keys,
    ARRAY(SELECT k.conname::text FROM pg_catalog.pg_constraint AS k
          WHERE k.conrelid = c.oid AND k.contype = 'x') AS exclusions,
    ARRAY(
        SELECT DISTINCT w.ev_class::regclass::text
        FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_rewrite AS w ON w.oid = d.objid
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
    ) AS views,
    ARRAY(
        SELECT DISTINCT d.objid::regprocedure::text
        FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_proc'::regclass
            AND (d.refclassid, d.refobjid) IN (('pg_class'::regclass, c.oid), ('pg_type'::regclass, c.reltype))
    ) AS functions,
    ARRAY(SELECT p.pubname::text FROM pg_catalog.pg_publication_tables AS p
          WHERE p.schemaname = n.nspname AND p.tablename = c.relname) AS publications,
    ARRAY(SELECT p.pubname::text FROM pg_catalog.pg_publication AS p
          JOIN pg_catalog.pg_publication_rel AS r ON r.prpubid = p.oid WHERE r.prrelid = c.oid) AS published,
    ARRAY(
        SELECT d.objid::regclass::text
        FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
            AND d.deptype = 'a'
    ) AS owned_sequences,
    ARRAY(SELECT i.inhparent::regclass::text FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = c.oid) AS parents,
    ARRAY(SELECT x.gid FROM pg_catalog.pg_prepared_xacts AS x WHERE x.database = current_database()) AS prepared
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = CAST(:oid AS oid);

-- name: list_indexes
-- Valid and not: what CREATE INDEX CONCURRENTLY leaves behind when it is cut short is of no use to anybody.
SELECT
    x.indexrelid AS oid,
    i.relname AS name,
    x.indisvalid AS valid,
    x.indisunique AS is_unique,
    x.indisprimary AS is_primary,
    x.indpred IS NOT NULL AS is_partial,
    am.amname AS method,
    pg_catalog.pg_relation_size(i.oid) AS bytes,
    k.conname AS constraint,
    ARRAY(
        SELECT coalesce(a.attname, '')::text
        FROM unnest(x.indkey::smallint[]) WITH ORDINALITY AS u (number, place)
        LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = u.number
        ORDER BY u.place
    ) AS columns
FROM pg_catalog.pg_index AS x
JOIN pg_catalog.pg_class AS i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_am AS am ON am.oid = i.relam
LEFT JOIN pg_catalog.pg_constraint AS k ON k.conindid = x.indexrelid AND k.conrelid = x.indrelid
WHERE x.indrelid = CAST(:oid AS oid)
ORDER BY i.relname;

-- name: list_grants
-- Whole-table grants and those on single columns; the owner's own need no copy, nor those of who is to own it.
SELECT DISTINCT
    a.privilege_type || coalesce(' (' || a.attname || ')', '') AS privilege,
    CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END AS grantee,
    a.is_grantable
FROM (
    SELECT e.grantee, e.privilege_type, e.is_grantable, NULL::text AS attname, c.relowner
    FROM pg_catalog.pg_class AS c
    CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS e
    WHERE c.oid = CAST(:oid AS oid)
    UNION ALL
    SELECT e.grantee, e.privilege_type, e.is_grantable, quote_ident(t.attname), c.relowner
    FROM pg_catalog.pg_attribute AS t
    JOIN pg_catalog.pg_class AS c ON c.oid = t.attrelid
    CROSS JOIN LATERAL pg_catalog.aclexplode(t.attacl) AS e
    WHERE t.attrelid = CAST(:oid AS oid) AND NOT t.attisdropped
) AS a
WHERE a.grantee <> a.relowner
    AND a.grantee <> (SELECT o.relowner FROM pg_catalog.pg_class AS o WHERE o.oid = CAST(:owned_as AS oid))
ORDER BY 1, 2;

-- name: list_waiting_for
-- Transactions that use the table and have been open for longer than DDL may wait: each must end first.
SELECT a.pid, coalesce(nullif(a.application_name, ''), a.usename, '') AS name, a.xact_start AS since
FROM pg_catalog.pg_locks AS l
JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.relation = CAST(:oid AS oid) AND l.granted AND a.pid <> pg_backend_pid()
    AND a.datname = current_database() AND a.xact_start < now() - interval '2 seconds'
ORDER BY a.xact_start
LIMIT 5;

-- name: drop_invalid
-- What a build that was cut short left behind: it costs every write and serves no read.
DROP INDEX CONCURRENTLY IF EXISTS /* index */ ix_celery_taskmeta_date_done;

-- name: index_date_done
-- As Celery 5.6.3 and later make it in new tables; without it the age of a partition could only be found by reading it.
CREATE INDEX CONCURRENTLY /* name */ ix_celery_taskmeta_date_done ON /* live */ celery_taskmeta (date_done);

-- name: rename_table
-- Its rows, indexes and statistics stay where they are.
ALTER TABLE /* live */ celery_taskmeta RENAME TO /* name */ celery_taskmeta_first;

-- name: rename_index
-- Celery makes its index by this name in a new process: the name belongs to the table that Celery sees.
ALTER INDEX /* index */ ix_celery_taskmeta_date_done RENAME TO /* name */ ix_celery_taskmeta_first_date_done;

-- name: rename_constraint
-- The same for a constraint and the index behind it.
ALTER TABLE /* live */ celery_taskmeta_first RENAME CONSTRAINT /* old */ celery_taskmeta_pkey
TO /* name */ celery_taskmeta_first_pkey;

-- name: create_by_id
-- A row's id never changes, so no row ever moves between partitions; the primary key stays.
CREATE TABLE /* live */ celery_taskmeta (
    LIKE /* first */ celery_taskmeta_first INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION,
    CONSTRAINT /* key */ celery_taskmeta_pkey PRIMARY KEY (id)
) PARTITION BY RANGE (id);

-- name: create_by_date
-- Without any key: a key would have to include date_done, which is empty until a task has finished.
CREATE TABLE /* live */ celery_taskmeta (
    LIKE /* first */ celery_taskmeta_default INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION
) PARTITION BY RANGE (date_done);

-- name: index_parent
-- Each leaf's own index becomes a part of it when the leaf is attached; nothing is built.
CREATE INDEX /* name */ ix_celery_taskmeta_date_done ON /* live */ celery_taskmeta (date_done);

-- name: own
-- Celery may add columns after an upgrade: the table stays its role's.
ALTER TABLE /* live */ celery_taskmeta OWNER TO /* owner */ celery;

-- name: grant
-- Whoever could read or write the table can go on.
GRANT /* privilege */ SELECT /* end */ ON /* live */ celery_taskmeta TO /* grantee */ reporting;

-- name: grant_on
-- The same for one that may pass it on.
GRANT /* privilege */ SELECT /* end */ ON /* live */ celery_taskmeta TO /* grantee */ reporting WITH GRANT OPTION;

-- name: revoke
-- A right that was taken away while the table was partitioned does not come back with the table that was the first leaf.
REVOKE /* privilege */ SELECT /* end */ ON /* live */ celery_taskmeta FROM /* grantee */ reporting;

-- name: attach_first
-- The validated CHECK says that every id is below the bound: nothing is read.
ALTER TABLE /* live */ celery_taskmeta ATTACH PARTITION /* first */ celery_taskmeta_first
FOR VALUES FROM (MINVALUE) TO (:upper);

-- name: attach_default
-- Results that have not finished have no date_done: the default partition is where they are.
ALTER TABLE /* live */ celery_taskmeta ATTACH PARTITION /* first */ celery_taskmeta_default DEFAULT;

-- name: describe
-- What the partition job and `undo` know the table by, for as long as it lives.
COMMENT ON TABLE /* live */ celery_taskmeta IS :comment;

-- name: drop_parent
-- It has no partitions and no rows any more.
DROP TABLE /* live */ celery_taskmeta;

-- name: inherit
-- From this moment on the plain table shows the leaf's rows as its own, while they are moved over.
ALTER TABLE /* leaf */ celery_taskmeta_i1000000 INHERIT /* live */ celery_taskmeta;

-- name: disinherit
-- The last of its rows was moved.
ALTER TABLE /* leaf */ celery_taskmeta_i1000000 NO INHERIT /* live */ celery_taskmeta;

-- name: close_leaf
-- Nothing can come to it any more: once this is validated, by reading it while everybody goes on, it is empty and stays
-- so. A leaf that was emptied has no rows, and gigabytes of dead ones to be read before that is known.
ALTER TABLE /* leaf */ celery_taskmeta_i1000000 ADD CONSTRAINT backendops_bound CHECK (false) NOT VALID;

-- name: drop_leaf
-- Under the exclusive lock, and only after its CHECK (false) was validated.
DROP TABLE /* leaf */ celery_taskmeta_i1000000;

-- name: keep_columns
-- The locks that moving a row takes anyway, in the order in which whoever adds a column takes them: until the commit
-- nobody does.
LOCK TABLE ONLY /* live */ celery_taskmeta, ONLY /* leaf */ celery_taskmeta_i1000000 IN ROW EXCLUSIVE MODE;

-- name: move_back
-- One statement: each row is in the one table or in the other, never in both and never in neither. What others hold
-- stays for the next batch. By id and not by ctid: a row that was updated meanwhile is not the one that was locked.
WITH moved AS (
    DELETE FROM ONLY /* leaf */ celery_taskmeta_i1000000
    WHERE id = ANY (ARRAY(
        SELECT id
        FROM ONLY /* leaf */ celery_taskmeta_i1000000
        WHERE id >= :low
        ORDER BY id
        LIMIT :size
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING /* columns */ id, task_id, status, result, date_done /* end */
)
INSERT INTO /* live */ celery_taskmeta (/* columns */ id, task_id, status, result, date_done /* end */)
SELECT /* columns */ id, task_id, status, result, date_done /* end */ FROM moved
RETURNING id;

-- name: find_next_id
-- Where the next batch begins; rows below it that others held are looked for again at the end.
SELECT min(id) FROM ONLY /* leaf */ celery_taskmeta_i1000000 WHERE id >= :low;

-- name: move_one_back
-- The same for one row that met its own task id, or its own id, in the plain table: the others are moved without it.
WITH moved AS (
    DELETE FROM ONLY /* leaf */ celery_taskmeta_i1000000
    WHERE id = :id
    RETURNING /* columns */ id, task_id, status, result, date_done /* end */
)
INSERT INTO /* live */ celery_taskmeta (/* columns */ id, task_id, status, result, date_done /* end */)
SELECT /* columns */ id, task_id, status, result, date_done /* end */ FROM moved;

-- name: list_batch
-- The ids of a batch, for trying them one by one.
SELECT id FROM ONLY /* leaf */ celery_taskmeta_i1000000 WHERE id >= :low ORDER BY id LIMIT :size;

-- name: find_key_twins
-- Tasks that the plain table could not take twice.
SELECT /* key */ task_id AS key
FROM /* live */ celery_taskmeta
WHERE /* key */ task_id IS NOT NULL
GROUP BY /* key */ task_id
HAVING count(*) > 1
LIMIT 5;
