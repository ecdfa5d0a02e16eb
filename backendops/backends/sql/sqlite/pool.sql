-- pool-health: no server, so one thing can be asked: does the file answer?

-- name: round_trip
-- Reads the file's header under a shared lock; a constant would be answered without touching the file.
SELECT schema_version FROM pragma_schema_version;
