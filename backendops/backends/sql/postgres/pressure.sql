-- What a changing run asks about once a second while it goes on. Nothing here takes a lock that matters.

-- name: bound
-- Goes in front of the question, in the same message: PostgreSQL runs both as one transaction, so that these end with
-- it, behind PgBouncer too, and both together cost one round trip. What the policy asks cannot change anything.
SELECT
    set_config('transaction_read_only', 'on', true),
    set_config('statement_timeout', :statement_timeout, true),
    set_config('lock_timeout', :statement_timeout, true),
    set_config('jit', 'off', true);

-- name: ask
-- Waiting: who waits for a lock on the live tables or their partitions (who wants a row waits for the transaction that
-- has it, so by a lock of its own on the table), and who waits for a session of ours, whatever the lock. pg_locks hides
-- nothing from any role. Lag: of physical replicas only, since a logical one confirms when its reader feels like it;
-- one that has replayed all it was sent has none, and one that only receives never replays. Without pg_read_all_stats
-- the server hides the lag, not the replica.
-- In use: a session of somebody else's, in any database, as all share one log, has asked something within two seconds,
-- or without pg_read_all_stats may have. Two, so that who asks every second counts; a monitor that asks every fifteen
-- hardly does. The server's own processes have no database, or no user.
WITH sessions AS MATERIALIZED (
    SELECT
        pid,
        usename = session_user AND application_name = current_setting('application_name') AS is_ours,
        datid IS NOT NULL AND usename IS NOT NULL AND coalesce(backend_type = 'client backend', true)
        AND coalesce(state = 'active' OR state_change > clock_timestamp() - interval '2 s', true) AS is_busy
    FROM pg_catalog.pg_stat_activity
), ours AS MATERIALIZED (
    SELECT pid FROM sessions WHERE is_ours
), named AS MATERIALIZED (
    SELECT c.oid
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN (VALUES
        (CAST(:task AS name), CAST(:task_schema AS text)),
        (CAST(:group AS name), CAST(:group_schema AS text))
    ) AS live (name, schema) ON live.name = c.relname
    WHERE CASE WHEN live.schema IS NULL
               THEN pg_catalog.pg_table_is_visible(c.oid)
               ELSE n.nspname = CAST(live.schema AS name) END
), live AS MATERIALIZED (
    SELECT oid FROM named
    UNION ALL
    SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i JOIN named ON named.oid = i.inhparent
), locks AS MATERIALIZED (
    SELECT
        pid,
        granted,
        relation IN (SELECT oid FROM live)
        AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) AS on_live
    FROM pg_catalog.pg_locks
    WHERE pid NOT IN (SELECT pid FROM ours)
), replicas AS MATERIALIZED (
    SELECT
        r.application_name AS name,
        r.state IS NULL AS hidden,
        CASE WHEN r.state IN ('streaming', 'catchup') AND r.replay_lsn < r.sent_lsn
             THEN extract(epoch FROM r.replay_lag) END AS lag
    FROM pg_catalog.pg_stat_replication AS r
    WHERE r.application_name <> ALL (CAST(:ignored AS text[]))
      AND NOT EXISTS (
          SELECT FROM pg_catalog.pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical'
      )
)
SELECT
    (
        SELECT count(DISTINCT w.pid)
        FROM locks AS w
        WHERE NOT w.granted
          AND (
              w.pid IN (SELECT l.pid FROM locks AS l WHERE l.on_live)
              OR pg_catalog.pg_blocking_pids(w.pid) && ARRAY(SELECT pid FROM ours)
          )
    ) AS waiting,
    EXISTS (SELECT FROM sessions WHERE NOT is_ours AND is_busy) AS in_use,
    (SELECT count(*) FROM replicas WHERE hidden) AS hidden_replicas,
    (SELECT max(lag) FROM replicas) AS lag,
    (SELECT name FROM replicas WHERE lag IS NOT NULL ORDER BY lag DESC LIMIT 1) AS slowest,
    (SELECT row_to_json(answer)::text FROM /* stop_when */ (SELECT false) AS answer LIMIT 1) AS stop_when,
    (SELECT row_to_json(answer)::text FROM /* pause_when */ (SELECT false) AS answer LIMIT 1) AS pause_when;

-- name: ask_one
-- Which of the policy's questions was wrong is known by asking each alone.
SELECT row_to_json(answer)::text FROM /* question */ (SELECT false) AS answer LIMIT 1;
