ALTER TABLE jobs DROP COLUMN revived_by;
ALTER TABLE jobs DROP COLUMN unknown_since;
DROP INDEX outbox_by_group;
CREATE INDEX outbox_by_group ON outbox (queue, message_group, id) WHERE message_group IS NOT NULL;
