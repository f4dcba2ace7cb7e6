-- What an operator does to jobs and queues: cancelling, pausing, pruning, and listing quickly.

-- 1: the running attempt is to be stopped. Its worker looks here twice a second.
ALTER TABLE sqjobs_jobs ADD COLUMN cancel_requested INTEGER NOT NULL DEFAULT 0;
CREATE INDEX sqjobs_jobs_to_stop ON sqjobs_jobs (worker_id) WHERE cancel_requested = 1;

-- 1: only what keeps the job from running again is left: id, name, fingerprint and final status.
ALTER TABLE sqjobs_jobs ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;
CREATE INDEX sqjobs_jobs_finished ON sqjobs_jobs (finished_at, id)
    WHERE finished_at IS NOT NULL AND pruned = 0;
CREATE INDEX sqjobs_jobs_pruned ON sqjobs_jobs (finished_at) WHERE pruned = 1;

-- Lists, newest first. Most jobs have succeeded, and are found by the index over all.
CREATE INDEX sqjobs_jobs_by_name ON sqjobs_jobs (name, created_at DESC, id DESC);
CREATE INDEX sqjobs_jobs_by_queue ON sqjobs_jobs (queue, created_at DESC, id DESC);
CREATE INDEX sqjobs_jobs_by_status ON sqjobs_jobs (status, created_at DESC, id DESC)
    WHERE status <> 'SUCCESS';
CREATE INDEX sqjobs_jobs_by_error ON sqjobs_jobs (created_at DESC, id DESC) WHERE error IS NOT NULL;

-- Queues that no worker receives from.
CREATE TABLE sqjobs_paused_queues (
    queue     TEXT PRIMARY KEY,
    paused_at INTEGER NOT NULL
);
