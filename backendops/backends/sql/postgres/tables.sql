-- Celery's tables as they are on this server: names, columns, indexes and what this role may do with them.

-- name: find_table
-- The cast cuts a name to 63 bytes as the server did when Celery made the table.
SELECT
    c.oid,
    n.nspname AS schema,
    c.relname AS name,
    c.relkind::text AS kind,
    greatest(c.reltuples, 0)::bigint AS estimated_rows,
    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS can_read,
    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'UPDATE') AS can_lock,
    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'DELETE') AS can_delete,
    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'INSERT') AS can_insert,
    pg_has_role(c.relowner, 'USAGE') AS is_owner,
    current_user AS role
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relname = CAST(:name AS name)
  AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND CASE WHEN CAST(:schema AS text) IS NULL
           THEN pg_catalog.pg_table_is_visible(c.oid)
           ELSE n.nspname = CAST(:schema AS name) END;

-- name: find_closed
-- Without USAGE a schema is no part of search_path: what is in it seems not to be there.
SELECT quote_ident(n.nspname) AS schema, current_user AS role
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = CAST(:key AS name)
WHERE c.relname = CAST(:name AS name)
    AND c.relkind IN ('r', 'p')
    AND NOT has_schema_privilege(n.oid, 'USAGE')
    AND n.nspname = ANY (
        SELECT replace(replace(part, '"$user"', current_user), '"', '')
        FROM regexp_split_to_table(current_setting('search_path'), ' *, *') AS part
    )
ORDER BY 1
LIMIT 1;

-- name: list_columns
-- Types as the server writes them, with their collation where it is not the type's own.
SELECT
    a.attname AS name,
    pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
    a.attnotnull AS not_null,
    a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> '' AS has_default,
    CASE WHEN a.attcollation <> t.typcollation
         THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END AS collation
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_collation AS co ON co.oid = a.attcollation
LEFT JOIN pg_catalog.pg_namespace AS cn ON cn.oid = co.collnamespace
WHERE a.attrelid = CAST(:oid AS oid) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum;

-- name: leads_an_index
-- Only a whole, valid btree can be walked in order. Celery 5.6.3 and later make one on date_done, in new tables only.
SELECT EXISTS (
    SELECT
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_am AS am ON am.oid = c.relam
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = CAST(:oid AS oid) AND a.attname = CAST(:column AS name)
      AND am.amname = 'btree' AND i.indisvalid AND i.indpred IS NULL
);

-- name: find_similar
-- For a name that is nowhere: where else there is a table with Celery's columns, most likely the one that was meant.
SELECT DISTINCT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid
JOIN pg_catalog.pg_attribute AS d ON d.attrelid = c.oid
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND a.attname = CAST(:key AS name) AND d.attname = 'date_done'
  AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_attribute AS ours WHERE ours.attrelid = c.oid AND ours.attname = 'archived_at'
  )
ORDER BY 1
LIMIT 5;
