-- Order within a message group, whether a row names its queue by name or by URL.

DROP INDEX outbox_by_group;
CREATE INDEX outbox_by_group ON outbox (message_group, id) WHERE message_group IS NOT NULL;
