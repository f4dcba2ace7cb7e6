-- Order within a message group, whether a row names its queue by name or by URL.
DROP INDEX outbox_by_group;
CREATE INDEX outbox_by_group ON outbox (message_group, id) WHERE message_group IS NOT NULL;

-- Since when no module holds the job's name, while none does.
ALTER TABLE jobs ADD COLUMN unknown_since bigint;
-- The message that had a job run again which had failed for good: its redeliveries do not.
ALTER TABLE jobs ADD COLUMN revived_by text;
