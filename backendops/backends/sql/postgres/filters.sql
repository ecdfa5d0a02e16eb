-- The filters of an archive's partitions: small indexes that say in which pages an id may be. Rows that were added since are
-- searched page by page until their filters are made.

-- name: list_filters
-- Only those whose table is ours: nobody else may have the server make them.
SELECT
    i.indexrelid AS oid,
    pg_relation_size(i.indrelid) / current_setting('block_size')::bigint AS pages,
    coalesce(
        (
            SELECT CAST(o.option_value AS bigint)
            FROM pg_options_to_table(c.reloptions) AS o
            WHERE o.option_name = 'pages_per_range'
        ),
        128
    ) AS pages_each
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_am AS a ON a.oid = c.relam
WHERE i.indrelid = CAST(:oid AS oid) AND a.amname = 'brin' AND i.indisvalid AND pg_has_role(c.relowner, 'USAGE');

-- name: make_filters
-- Of whole ranges of pages only: one that is still filled up would have to be changed with every row. Those that are there
-- already cost nothing.
SELECT sum(brin_summarize_range(CAST(CAST(:filter AS oid) AS regclass), block)) AS made
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint), CAST(:pages_each AS bigint)) AS block;
