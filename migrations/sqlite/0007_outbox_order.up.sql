-- Order within a message group, whether a row names its queue by name or by URL.

DROP INDEX sqjobs_outbox_by_group;
CREATE INDEX sqjobs_outbox_by_group ON sqjobs_outbox (message_group, id) WHERE message_group IS NOT NULL;
