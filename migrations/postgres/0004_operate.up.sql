-- What operators and authors need every day: dead jobs sent again, delays that can be seen, and
-- unique keys.

ALTER TABLE jobs ADD COLUMN not_before bigint;                  -- a delayed job: when it may run
ALTER TABLE jobs ADD COLUMN retries bigint NOT NULL DEFAULT 0;  -- how often `dead retry` sent it again
ALTER TABLE jobs ADD COLUMN retried_at bigint;                  -- when it did so last

-- An entry of the dead list that is sent again exactly as it was: its kind, and its body as bytes,
-- since a malformed body may hold what no text column takes.
ALTER TABLE outbox ADD COLUMN aside text;
ALTER TABLE outbox ADD COLUMN exact_body bytea;

-- Who holds a unique key: one row per key. It is free again once its job has a final status and
-- its window has ended.
CREATE TABLE unique_keys (
    key        text PRIMARY KEY,
    job_id     text NOT NULL,
    held_until bigint NOT NULL
);
CREATE INDEX unique_keys_by_job ON unique_keys (job_id);
CREATE INDEX unique_keys_by_end ON unique_keys (held_until);
