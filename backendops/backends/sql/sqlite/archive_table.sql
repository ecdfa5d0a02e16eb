-- The archive table, in the same file, so that a batch is copied and deleted in one transaction.

-- name: create_archive
-- No key and nothing unique: a task that ran again after it was archived must not jam the job.
CREATE TABLE IF NOT EXISTS /* archive */ celery_taskmeta_archive (
    /* definitions */ id INTEGER, task_id VARCHAR(155) /* end */,
    done_at TEXT NOT NULL,     -- date_done in UTC, ISO 8601
    archived_at TEXT NOT NULL  -- the moment of archiving in UTC, ISO 8601
);

-- name: create_index
-- Results are looked up by task_id (group results by taskset_id).
CREATE INDEX IF NOT EXISTS /* index */ ix_celery_taskmeta_archive_task_id
ON /* archive */ celery_taskmeta_archive (/* result_id */ task_id);

-- name: add_column
-- What a Celery upgrade added to the live table.
ALTER TABLE /* archive */ celery_taskmeta_archive ADD COLUMN /* definition */ stamps BLOB /* end */;
