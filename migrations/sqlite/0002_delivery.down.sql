DROP TABLE sqjobs_malformed_space;
DROP INDEX sqjobs_outbox_by_group;
ALTER TABLE sqjobs_outbox DROP COLUMN group_position;
ALTER TABLE sqjobs_outbox DROP COLUMN attributes;
DROP INDEX sqjobs_jobs_by_position;
ALTER TABLE sqjobs_jobs DROP COLUMN group_position;
DROP INDEX sqjobs_jobs_waiting;
CREATE INDEX sqjobs_jobs_open ON sqjobs_jobs (updated_at) WHERE status IN ('RUNNING', 'RETRY');
ALTER TABLE sqjobs_jobs DROP COLUMN alone;
