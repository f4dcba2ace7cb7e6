-- What an operator does to jobs and queues: cancelling, pausing, pruning, and listing quickly.

-- 1: the running attempt is to be stopped. Its worker looks here twice a second.
ALTER TABLE jobs ADD COLUMN cancel_requested bigint NOT NULL DEFAULT 0;
CREATE INDEX jobs_to_stop ON jobs (worker_id) WHERE cancel_requested = 1;

-- 1: only what keeps the job from running again is left: id, name, fingerprint and final status.
ALTER TABLE jobs ADD COLUMN pruned bigint NOT NULL DEFAULT 0;
CREATE INDEX jobs_finished ON jobs (finished_at, id)
    WHERE finished_at IS NOT NULL AND pruned = 0;
CREATE INDEX jobs_pruned ON jobs (finished_at) WHERE pruned = 1;

-- Lists, newest first. Most jobs have succeeded, and are found by the index over all.
CREATE INDEX jobs_by_name ON jobs (name, created_at DESC, id DESC);
CREATE INDEX jobs_by_queue ON jobs (queue, created_at DESC, id DESC);
CREATE INDEX jobs_by_status ON jobs (status, created_at DESC, id DESC)
    WHERE status <> 'SUCCESS';
CREATE INDEX jobs_by_error ON jobs (created_at DESC, id DESC) WHERE error IS NOT NULL;

-- Queues that no worker receives from.
CREATE TABLE paused_queues (
    queue     text PRIMARY KEY,
    paused_at bigint NOT NULL
);
