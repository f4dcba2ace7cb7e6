DROP VIEW job_status;
DROP TABLE deployed_jobs;
DROP TABLE dead;
DROP TABLE outbox;
DROP TABLE attempts;
DROP TABLE jobs;
DROP TABLE workers;
