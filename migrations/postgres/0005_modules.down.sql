DROP TABLE job_owners;
DROP TABLE module_history;
DROP TABLE module_versions;
DROP TABLE modules;
