-- What operators and authors need every day: dead jobs sent again, delays that can be seen, and
-- unique keys.

ALTER TABLE sqjobs_jobs ADD COLUMN not_before INTEGER;                  -- a delayed job: when it may run
ALTER TABLE sqjobs_jobs ADD COLUMN retries INTEGER NOT NULL DEFAULT 0;  -- how often `dead retry` sent it again
ALTER TABLE sqjobs_jobs ADD COLUMN retried_at INTEGER;                  -- when it did so last

-- An entry of the dead list that is sent again exactly as it was: its kind, and its body as bytes,
-- since a malformed body may hold what no text column takes.
ALTER TABLE sqjobs_outbox ADD COLUMN aside TEXT;
ALTER TABLE sqjobs_outbox ADD COLUMN exact_body BLOB;

-- Who holds a unique key: one row per key. It is free again once its job has a final status and
-- its window has ended.
CREATE TABLE sqjobs_unique_keys (
    key        TEXT PRIMARY KEY,
    job_id     TEXT NOT NULL,
    held_until INTEGER NOT NULL
);
CREATE INDEX sqjobs_unique_keys_by_job ON sqjobs_unique_keys (job_id);
CREATE INDEX sqjobs_unique_keys_by_end ON sqjobs_unique_keys (held_until);
