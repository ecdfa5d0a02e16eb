-- The one lock of a backend's changing jobs.

-- name: take
-- A transaction's lock, not a session's: PgBouncer in transaction mode would hand a session's lock to a stranger. The
-- transaction holds no snapshot while it idles, so it does not hold back vacuum. Its start time is proof of it.
SELECT pg_try_advisory_xact_lock(:key) AS taken, transaction_timestamp() AS begun, pg_backend_pid() AS pid;

-- name: is_same_transaction
-- The lock lives exactly as long as the transaction that took it.
SELECT transaction_timestamp() = :begun AND pg_backend_pid() = :pid;
