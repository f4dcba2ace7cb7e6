DROP TABLE sqjobs_job_owners;
DROP TABLE sqjobs_module_history;
DROP TABLE sqjobs_module_versions;
DROP TABLE sqjobs_modules;
