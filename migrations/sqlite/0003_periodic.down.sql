DROP TABLE sqjobs_served_queues;
DROP TABLE sqjobs_worker_jobs;
DROP TABLE sqjobs_beaters;
DROP TABLE sqjobs_periodic_ticks;
DROP TABLE sqjobs_periodic_definitions;
DROP TABLE sqjobs_periodic;
