-- How much of a table or an index is room that holds nothing: measured where pgstattuple is installed, else estimated.

-- name: find_extension
-- Its functions are for superusers and members of pg_stat_scan_tables, unless somebody granted them.
SELECT
    quote_ident(n.nspname) AS schema,
    has_schema_privilege(n.oid, 'USAGE')
    AND has_function_privilege(
        to_regprocedure(quote_ident(n.nspname) || '.pgstattuple_approx(regclass)')::oid, 'EXECUTE'
    )
    AND has_function_privilege(
        to_regprocedure(quote_ident(n.nspname) || '.pgstatindex(regclass)')::oid, 'EXECUTE'
    ) AS permitted
FROM pg_catalog.pg_extension AS e
JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.extname = 'pgstattuple';

-- name: measure_table
-- Reads only the pages that the visibility map does not vouch for; the free space of the others is in their map.
SELECT dead_tuple_len::bigint AS dead, approx_free_space::bigint AS free
FROM /* function */ public.pgstattuple_approx (CAST(CAST(:oid AS oid) AS regclass));

-- name: measure_index
-- Reads the whole index. Leaf pages are filled up to 90 % when an index is built, so a rebuilt one would have as many
-- as its contents need at that.
SELECT
    index_size AS bytes,
    CASE WHEN leaf_pages = 0 THEN 0
         ELSE leaf_pages * current_setting('block_size')::bigint * avg_leaf_density / 100 END::float8 AS contents
FROM /* function */ public.pgstatindex (CAST(CAST(:oid AS oid) AS regclass));

-- name: describe_rows
-- From the planner's statistics, as a row lies in the heap (a value in TOAST is a pointer of 18 bytes there): header
-- with its bitmap of NULLs, line pointer, what alignment costs, columns. NULL where a column has no statistics.
SELECT
    CASE WHEN bool_and(known) THEN
        CASE WHEN max(null_frac) > 0 THEN ceil((23 + ceil(count(*) / 8.0)) / 8.0) * 8 ELSE 24 END
        + 4 + 4
        + sum((1 - null_frac) * (avg_width + padding))
    END::float8 AS row_bytes,
    coalesce(sum((1 - null_frac) * avg_width) FILTER (WHERE attlen = -1), 0)::float8 AS varying_bytes,
    array_agg(attname::text ORDER BY attnum) FILTER (WHERE attlen = -1) AS varying,
    has_table_privilege(CAST(:oid AS oid), 'SELECT') AS readable
FROM (
    SELECT
        a.attname,
        a.attnum,
        a.attlen,
        s.avg_width IS NOT NULL AS known,
        coalesce(s.null_frac, 0) AS null_frac,
        coalesce(s.avg_width, 0) AS avg_width,
        -- On average; a short value of varying length (a header of one byte) is not aligned.
        CASE
            WHEN a.attlen = -1 AND coalesce(s.avg_width, 0) < 127 THEN 0
            WHEN a.attalign = 'd' THEN 2
            WHEN a.attalign = 'i' THEN 1.5
            ELSE 0
        END AS padding
    FROM pg_catalog.pg_attribute AS a
    JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_stats AS s
        ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname AND NOT s.inherited
    WHERE a.attrelid = CAST(:oid AS oid) AND a.attnum > 0 AND NOT a.attisdropped
) AS columns;

-- name: sample_values
-- TOAST has no statistics, so some pages of the table are asked how large their values are stored; no value is read.
SELECT count(*) AS rows, coalesce(sum(/* sizes */ (coalesce(pg_column_size(result), 0))), 0)::float8 AS bytes
FROM /* table */ celery_taskmeta TABLESAMPLE SYSTEM (CAST(:percent AS real));
