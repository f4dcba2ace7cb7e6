-- What the promises about delivery need: jobs that run alone after they took hosts down, sends
-- that keep a message's attributes and a group's order, and a count of the space that malformed
-- messages take.

ALTER TABLE sqjobs_jobs ADD COLUMN alone INTEGER NOT NULL DEFAULT 0;  -- 1: the running attempt runs alone in its worker

-- What still waits for its message, by queue: the sweep for messages that are gone looks here.
DROP INDEX sqjobs_jobs_open;
CREATE INDEX sqjobs_jobs_waiting ON sqjobs_jobs (queue, updated_at)
    WHERE status IN ('PENDING', 'RUNNING', 'RETRY');

-- Place of a job of a FIFO queue within its message group, once it has been sent again from here:
-- those of the group that are not ahead of it wait until it is done.
ALTER TABLE sqjobs_jobs ADD COLUMN group_position INTEGER;
CREATE INDEX sqjobs_jobs_by_position ON sqjobs_jobs (queue, message_group, group_position)
    WHERE group_position IS NOT NULL AND status IN ('PENDING', 'RUNNING', 'RETRY');

ALTER TABLE sqjobs_outbox ADD COLUMN attributes TEXT NOT NULL DEFAULT '{}';  -- of the sender, as a JSON object
ALTER TABLE sqjobs_outbox ADD COLUMN group_position INTEGER;
CREATE INDEX sqjobs_outbox_by_group ON sqjobs_outbox (queue, message_group, id) WHERE message_group IS NOT NULL;

-- Bytes of malformed bodies kept, by queue.
CREATE TABLE sqjobs_malformed_space (
    queue TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL
);
INSERT INTO sqjobs_malformed_space (queue, bytes)
SELECT queue, sum(body_bytes) FROM sqjobs_dead WHERE kind = 'malformed' GROUP BY queue;
