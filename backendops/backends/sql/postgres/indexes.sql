-- Indexes of Celery's tables and of their archives: what is missing, broken, doubled, unused or bloated.

-- name: list_indexes
-- A lock as a build, a rebuild or a vacuum holds it on the table: pg_locks hides nothing, the progress views do.
-- `same` is equal for indexes that can stand in for each other, whether or not they are unique.
SELECT
    i.indexrelid AS oid,
    i.indrelid AS table_oid,
    n.nspname AS schema,
    c.relname AS name,
    t.relname AS table_name,
    c.relkind = 'I' AS is_parent,
    c.relispartition AS is_attached,
    i.indisvalid AS is_valid,
    i.indisunique AS is_unique,
    EXISTS (SELECT FROM pg_catalog.pg_constraint AS k WHERE k.conindid = i.indexrelid) AS is_constraint,
    am.amname AS method,
    CASE WHEN i.indnkeyatts = 1 AND i.indnatts = 1 AND i.indpred IS NULL THEN a.attname END AS only_column,
    i.indnkeyatts = 1 AND i.indnatts = 1 AND i.indpred IS NULL AND a.attname = 'date_done'
    AND am.amname = 'btree' AND NOT i.indisunique AND i.indoption[0] = 0
    AND (SELECT o.opcdefault FROM pg_catalog.pg_opclass AS o WHERE o.oid = i.indclass[0]) AS is_plain,
    concat_ws(
        ' ', am.amname, i.indkey, i.indnkeyatts, i.indclass, i.indcollation, i.indoption,
        coalesce(pg_catalog.pg_get_expr(i.indexprs, i.indrelid), '-'),
        coalesce(pg_catalog.pg_get_expr(i.indpred, i.indrelid), '-')
    ) AS same,
    CASE
        WHEN c.relkind = 'I' THEN 0
        -- Asking for the size would wait for who has it, or its table, for himself alone.
        WHEN w.locked THEN c.relpages * current_setting('block_size')::bigint
        ELSE pg_catalog.pg_relation_size(i.indexrelid)
    END AS bytes,
    coalesce(s.idx_scan, 0) AS scans,
    coalesce(ts.idx_scan, 0) AS table_scans,
    CASE WHEN coalesce(ts.n_live_tup, 0) + coalesce(ts.n_dead_tup, 0) > 0 THEN ts.n_live_tup
         ELSE greatest(t.reltuples, 0) END::float8 AS rows,
    (
        SELECT CASE WHEN count(p.avg_width) = i.indnatts THEN sum(p.avg_width) END
        FROM pg_catalog.pg_attribute AS ka
        JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.relnamespace
        JOIN pg_catalog.pg_stats AS p
            ON p.schemaname = tn.nspname AND p.tablename = t.relname AND p.attname = ka.attname AND NOT p.inherited
        WHERE ka.attrelid = i.indrelid AND ka.attnum = ANY (i.indkey) AND i.indpred IS NULL AND i.indexprs IS NULL
    )::float8 AS key_bytes,
    pg_catalog.pg_has_role(t.relowner, 'USAGE') AS is_owner,
    pg_catalog.pg_get_userbyid(t.relowner) AS owner,
    coalesce((SELECT w.rolsuper FROM pg_catalog.pg_roles AS w WHERE w.oid = t.relowner), FALSE) AS owner_is_super,
    EXISTS (
        SELECT
        FROM pg_catalog.pg_locks AS l
        WHERE l.locktype = 'relation'
            AND l.relation IN (i.indrelid, i.indexrelid)
            AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
            AND l.mode IN (
                'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'
            )
            AND l.pid <> pg_backend_pid()
    ) AS is_busy
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_am AS am ON am.oid = c.relam
JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
LEFT JOIN pg_catalog.pg_stat_all_indexes AS s ON s.indexrelid = i.indexrelid
LEFT JOIN pg_catalog.pg_stat_all_tables AS ts ON ts.relid = i.indrelid
CROSS JOIN LATERAL (
    SELECT EXISTS (
        SELECT
        FROM pg_catalog.pg_locks AS l
        WHERE l.locktype = 'relation'
            AND l.relation IN (i.indrelid, i.indexrelid)
            AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())
            AND l.mode = 'AccessExclusiveLock'
            AND l.pid <> pg_backend_pid()
    ) AS locked
) AS w
WHERE i.indrelid = ANY (CAST(:tables AS oid[]))
ORDER BY t.relname, i.indexrelid;

-- name: create
-- Without stopping anybody's writes; waits for transactions that are older than it.
CREATE INDEX CONCURRENTLY /* index */ ix_celery_taskmeta_date_done ON /* table */ celery_taskmeta (date_done);

-- name: create_parent
-- Of a partitioned table: the frame alone, which becomes valid when every partition's index is attached.
CREATE INDEX /* index */ ix_celery_taskmeta_date_done ON ONLY /* table */ celery_taskmeta (date_done);

-- name: attach
-- Once for each partition.
ALTER INDEX /* index */ ix_celery_taskmeta_date_done ATTACH PARTITION /* part */ ix_celery_taskmeta_p1_date_done;

-- name: lock_table
-- Keeps every build on the table away between the last look and the rename. Stops neither readers nor writers.
LOCK TABLE ONLY /* table */ celery_taskmeta IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;

-- name: is_invalid
-- Is it still the index that was meant?
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_index AS i WHERE i.indexrelid = CAST(:oid AS oid) AND NOT i.indisvalid
);

-- name: rename
-- To a name that nobody else gives, so that the drop that follows, which waits, cannot meet a sound index of its name.
ALTER INDEX /* index */ ix_celery_taskmeta_date_done RENAME TO /* name */ backendops_drop_1;

-- name: drop
-- Without stopping anybody; waits for transactions that use the table.
DROP INDEX CONCURRENTLY IF EXISTS /* index */ backendops_drop_1;

-- name: rebuild
-- Beside the old one, which serves until the new one is whole.
REINDEX INDEX CONCURRENTLY /* index */ ix_celery_taskmeta_date_done;
