DROP TABLE malformed_space;
DROP INDEX outbox_by_group;
ALTER TABLE outbox DROP COLUMN group_position;
ALTER TABLE outbox DROP COLUMN attributes;
DROP INDEX jobs_by_position;
ALTER TABLE jobs DROP COLUMN group_position;
DROP INDEX jobs_waiting;
CREATE INDEX jobs_open ON jobs (updated_at) WHERE status IN ('RUNNING', 'RETRY');
ALTER TABLE jobs DROP COLUMN alone;
