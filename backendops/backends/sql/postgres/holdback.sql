-- Who keeps dead rows from being removed. Nothing here changes anything: backendops ends nobody's session.

-- name: list_holders
-- The oldest snapshots: of sessions, slots (a replica's, with hot_standby_feedback), prepared transactions and
-- replicas without a slot. Sessions of other databases do not hold back these tables, nor does a vacuum. A logical
-- slot's catalog_xmin holds back the catalogs alone, never rows of results. Whoever looked first after `before` sees all
-- that was removed until then as removed; our own looks are over in a second. An autovacuum worker is nobody's session.
SELECT kind, name, pid, since, state, xmin_age AS age
FROM (
    SELECT
        CASE a.backend_type WHEN 'autovacuum worker' THEN 'autovacuum' ELSE 'session' END AS kind,
        CASE a.backend_type
            WHEN 'autovacuum worker' THEN 'worker'
            ELSE coalesce(nullif(a.application_name, ''), a.usename, a.backend_type, 'unnamed')
        END AS name,
        a.pid,
        a.xact_start AS since,
        coalesce(a.state, '') AS state,
        greatest(age(a.backend_xmin), age(a.backend_xid)) AS xmin_age
    FROM pg_catalog.pg_stat_activity AS a
    WHERE a.pid <> pg_backend_pid()
        AND a.datname = current_database()
        AND a.backend_type <> 'walsender'
        AND a.leader_pid IS NULL
        AND (a.application_name, a.usename) IS DISTINCT FROM (current_setting('application_name'), session_user)
        AND a.pid NOT IN (SELECT v.pid FROM pg_catalog.pg_stat_progress_vacuum AS v)
    UNION ALL
    SELECT
        'replication slot', s.slot_name::text, s.active_pid, NULL, CASE WHEN s.active THEN 'active' ELSE 'inactive' END,
        age(s.xmin)
    FROM pg_catalog.pg_replication_slots AS s
    UNION ALL
    SELECT 'prepared transaction', p.gid, NULL, p.prepared, '', age(p.transaction)
    FROM pg_catalog.pg_prepared_xacts AS p
    WHERE p.database = current_database()
    UNION ALL
    SELECT 'replica', r.application_name, r.pid, NULL, coalesce(r.state, ''), age(r.backend_xmin)
    FROM pg_catalog.pg_stat_replication AS r
) AS holders
WHERE xmin_age > age(CAST(CAST(:before AS xid8) AS xid))
ORDER BY xmin_age DESC;

-- name: next_transaction
-- What is removed already was removed by an older one.
SELECT CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text);

-- name: sees_all
-- Without this role the server hides other roles' snapshots.
SELECT pg_has_role('pg_read_all_stats', 'USAGE');
