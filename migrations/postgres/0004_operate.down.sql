DROP TABLE unique_keys;
ALTER TABLE outbox DROP COLUMN exact_body;
ALTER TABLE outbox DROP COLUMN aside;
ALTER TABLE jobs DROP COLUMN retried_at;
ALTER TABLE jobs DROP COLUMN retries;
ALTER TABLE jobs DROP COLUMN not_before;
