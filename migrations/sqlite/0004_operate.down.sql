DROP TABLE sqjobs_unique_keys;
ALTER TABLE sqjobs_outbox DROP COLUMN exact_body;
ALTER TABLE sqjobs_outbox DROP COLUMN aside;
ALTER TABLE sqjobs_jobs DROP COLUMN retried_at;
ALTER TABLE sqjobs_jobs DROP COLUMN retries;
ALTER TABLE sqjobs_jobs DROP COLUMN not_before;
