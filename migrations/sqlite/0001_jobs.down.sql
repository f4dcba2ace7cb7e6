DROP VIEW sqjobs_job_status;
DROP TABLE sqjobs_deployed_jobs;
DROP TABLE sqjobs_dead;
DROP TABLE sqjobs_outbox;
DROP TABLE sqjobs_attempts;
DROP TABLE sqjobs_jobs;
DROP TABLE sqjobs_workers;
