-- What the promises about delivery need: jobs that run alone after they took hosts down, sends
-- that keep a message's attributes and a group's order, and a count of the space that malformed
-- messages take.

ALTER TABLE jobs ADD COLUMN alone bigint NOT NULL DEFAULT 0;  -- 1: the running attempt runs alone in its worker

-- What still waits for its message, by queue: the sweep for messages that are gone looks here.
DROP INDEX jobs_open;
CREATE INDEX jobs_waiting ON jobs (queue, updated_at)
    WHERE status IN ('PENDING', 'RUNNING', 'RETRY');

-- Place of a job of a FIFO queue within its message group, once it has been sent again from here:
-- those of the group that are not ahead of it wait until it is done.
ALTER TABLE jobs ADD COLUMN group_position bigint;
CREATE INDEX jobs_by_position ON jobs (queue, message_group, group_position)
    WHERE group_position IS NOT NULL AND status IN ('PENDING', 'RUNNING', 'RETRY');

ALTER TABLE outbox ADD COLUMN attributes text NOT NULL DEFAULT '{}';  -- of the sender, as a JSON object
ALTER TABLE outbox ADD COLUMN group_position bigint;
CREATE INDEX outbox_by_group ON outbox (queue, message_group, id) WHERE message_group IS NOT NULL;

-- Bytes of malformed bodies kept, by queue.
CREATE TABLE malformed_space (
    queue text PRIMARY KEY,
    bytes bigint NOT NULL
);
INSERT INTO malformed_space (queue, bytes)
SELECT queue, CAST(sum(body_bytes) AS bigint) FROM dead WHERE kind = 'malformed' GROUP BY queue;
