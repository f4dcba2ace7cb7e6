DROP INDEX sqjobs_outbox_by_group;
CREATE INDEX sqjobs_outbox_by_group ON sqjobs_outbox (queue, message_group, id) WHERE message_group IS NOT NULL;
