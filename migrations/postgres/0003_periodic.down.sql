ALTER TABLE outbox ALTER COLUMN job_id DROP DEFAULT;
ALTER TABLE outbox ALTER COLUMN enqueued_at DROP DEFAULT;
DROP TABLE served_queues;
DROP TABLE worker_jobs;
DROP TABLE beaters;
DROP TABLE periodic_ticks;
DROP TABLE periodic_definitions;
DROP TABLE periodic;
