ALTER TABLE sqjobs_jobs DROP COLUMN revived_by;
ALTER TABLE sqjobs_jobs DROP COLUMN unknown_since;
DROP INDEX sqjobs_outbox_by_group;
CREATE INDEX sqjobs_outbox_by_group ON sqjobs_outbox (queue, message_group, id) WHERE message_group IS NOT NULL;
