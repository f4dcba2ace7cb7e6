DROP TABLE worker_jobs;
DROP TABLE beaters;
DROP TABLE periodic_ticks;
DROP TABLE periodic_definitions;
DROP TABLE periodic;
