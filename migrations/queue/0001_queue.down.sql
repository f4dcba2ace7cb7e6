DROP TABLE sqjobs_deduplication;
DROP TABLE sqjobs_message_groups;
DROP TABLE sqjobs_messages;
DROP TABLE sqjobs_queues;
