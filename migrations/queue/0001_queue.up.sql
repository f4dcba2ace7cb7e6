-- The embedded queue, for one machine. Times are milliseconds since 1970 (UTC). It may share its
-- file with the outcomes' tables, so its migrations are listed in a table of their own.

CREATE TABLE sqjobs_queues (
    id                INTEGER PRIMARY KEY,
    name              TEXT NOT NULL UNIQUE,
    is_fifo           INTEGER NOT NULL,
    visibility_ms     INTEGER NOT NULL,   -- of receives that name none
    retention_ms      INTEGER NOT NULL,   -- from sending; older messages are gone
    max_receive_count INTEGER,
    dead_letter_queue TEXT REFERENCES sqjobs_queues (name),
    created_at        INTEGER NOT NULL,
    CHECK ((max_receive_count IS NULL) = (dead_letter_queue IS NULL))
);

-- Delayed: no receipt yet, visible later. In flight: has a receipt, visible later. Else it waits.
CREATE TABLE sqjobs_messages (
    seq           INTEGER PRIMARY KEY,    -- always above all others at sending: the order of a group
    queue_id      INTEGER NOT NULL,
    message_id    TEXT NOT NULL,
    visible_at    INTEGER NOT NULL,
    sent_at       INTEGER NOT NULL,
    receive_count INTEGER NOT NULL DEFAULT 0,
    received_at   INTEGER,                -- last receipt: visibility ends 12 hours later at most
    receipt       TEXT,                   -- of the last receipt; earlier ones are stale
    message_group TEXT,
    attributes    TEXT NOT NULL,          -- JSON object of strings
    body          TEXT NOT NULL
);
CREATE INDEX sqjobs_messages_by_visibility ON sqjobs_messages (queue_id, visible_at);
CREATE INDEX sqjobs_messages_by_group ON sqjobs_messages (queue_id, message_group)
    WHERE message_group IS NOT NULL;

-- Groups of FIFO queues that have messages. One with a message in flight is blocked until then,
-- at no cost to the others, however many messages it holds.
CREATE TABLE sqjobs_message_groups (
    queue_id   INTEGER NOT NULL,
    name       TEXT NOT NULL,
    visible_at INTEGER NOT NULL,
    PRIMARY KEY (queue_id, name)
) WITHOUT ROWID;
CREATE INDEX sqjobs_message_groups_by_visibility ON sqjobs_message_groups (queue_id, visible_at);

-- Sends to FIFO queues in the last five minutes; they count after the message was deleted too.
CREATE TABLE sqjobs_deduplication (
    queue_id         INTEGER NOT NULL,
    deduplication_id TEXT NOT NULL,
    message_id       TEXT NOT NULL,
    sent_at          INTEGER NOT NULL,
    PRIMARY KEY (queue_id, deduplication_id)
) WITHOUT ROWID;
CREATE INDEX sqjobs_deduplication_by_time ON sqjobs_deduplication (queue_id, sent_at);
