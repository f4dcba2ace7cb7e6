-- Order within a message group, whether a row names its queue by name or by URL.
DROP INDEX sqjobs_outbox_by_group;
CREATE INDEX sqjobs_outbox_by_group ON sqjobs_outbox (message_group, id) WHERE message_group IS NOT NULL;

-- Since when no module holds the job's name, while none does.
ALTER TABLE sqjobs_jobs ADD COLUMN unknown_since INTEGER;
-- The message that had a job run again which had failed for good: its redeliveries do not.
ALTER TABLE sqjobs_jobs ADD COLUMN revived_by TEXT;
