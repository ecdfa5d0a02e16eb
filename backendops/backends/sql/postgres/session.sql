-- What every transaction of ours starts with, and what the server says about itself.

-- name: bound_transaction
-- Local to the transaction, so that PgBouncer in transaction mode carries nothing over to a stranger: a session's
-- SET would leak, an `options` startup parameter is refused. Plain dates, names and lists, so that bounds, keys and
-- rows can be read. One process: a count is in no hurry, and the other processors are the application's. A role's
-- transaction_timeout (PostgreSQL 17) would end the session without a word of why; every statement has its own bound.
SELECT
    set_config('statement_timeout', :statement_timeout, true),
    set_config('lock_timeout', :lock_timeout, true),
    set_config('idle_in_transaction_session_timeout', :idle_timeout, true),
    set_config('TimeZone', 'UTC', true),
    set_config('DateStyle', 'ISO, YMD', true),
    set_config('quote_all_identifiers', 'off', true),
    set_config('array_nulls', 'on', true),
    set_config('max_parallel_workers_per_gather', '0', true),
    CASE WHEN current_setting('transaction_timeout', true) <> '0' THEN set_config('transaction_timeout', '0', true) END;

-- name: see_one_state
-- Before anything else of its transaction: all its statements see the rows that the first one sees.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;

-- name: make_read_only
-- A preview cannot change anything, whatever it tries.
SET TRANSACTION READ ONLY;

-- name: prefer_indexes
-- A batch knows its index. Stale statistics (a table just loaded, a state just emptied) must not turn every batch into
-- a scan of the whole table, nor into a second of compiling.
-- The moved rows of a batch pass through memory: some 20,000 of them, instead of through a file.
SELECT
    set_config('enable_seqscan', 'off', true),
    set_config('jit', 'off', true),
    set_config('work_mem', '64MB', true);

-- name: commit_lazily
-- A batch within one database need not wait for the disk: the log keeps its order, so a crash of the server undoes the last
-- batches as a whole, and their rows are where they were.
SELECT set_config('synchronous_commit', 'off', true);

-- name: wait_for_disk
-- Has a transaction number, so its commit waits until what this session committed before it is on disk (and on the standbys
-- that the server waits for), unless the server is set not to wait at all.
SELECT pg_current_xact_id();

-- name: be_durable
-- For a commit that another store relies on: a server set to synchronous_commit = off may forget its last ones in a
-- crash, and the other store would not. What waits for standbys goes on waiting.
SELECT set_config(
    'synchronous_commit',
    CASE current_setting('synchronous_commit') WHEN 'off' THEN 'local' ELSE current_setting('synchronous_commit') END,
    true
);

-- name: current_schema
-- Where Celery would make its tables.
SELECT current_schema();
