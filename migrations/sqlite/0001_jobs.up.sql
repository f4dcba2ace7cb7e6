-- Times are milliseconds since 1970 (UTC): the views show them as timestamps. JSON is text, kept
-- as it was sent or returned: a binary JSON column reorders keys and rejects \u0000.

CREATE TABLE sqjobs_workers (
    id          TEXT PRIMARY KEY,
    host        TEXT NOT NULL,
    pid         INTEGER NOT NULL,
    version     TEXT NOT NULL,
    queues      TEXT NOT NULL,
    started_at  INTEGER NOT NULL,
    renewed_at  INTEGER NOT NULL,      -- by the database's clock; claims live while this is fresh
    lease_ms    INTEGER NOT NULL
);

CREATE TABLE sqjobs_jobs (
    id               TEXT PRIMARY KEY,
    name             TEXT NOT NULL,
    queue            TEXT NOT NULL,
    status           TEXT NOT NULL DEFAULT 'PENDING'
                     CHECK (status IN ('PENDING', 'RUNNING', 'RETRY', 'SUCCESS', 'FAILURE', 'CANCELLED')),
    args             TEXT,            -- null once pruned
    kwargs           TEXT,
    fingerprint      TEXT NOT NULL,   -- of name and arguments: another one under this id is a conflict
    message_group    TEXT,
    attempts         INTEGER NOT NULL DEFAULT 0,  -- runs begun
    spent            INTEGER NOT NULL DEFAULT 0,  -- attempts that count against the retry policy
    crashes          INTEGER NOT NULL DEFAULT 0,  -- runs begun whose worker died
    token            TEXT,            -- owner of the running attempt
    worker_id        TEXT,
    module           TEXT,
    module_version   TEXT,
    module_digest    TEXT,
    result           TEXT,
    error            TEXT,
    error_kind       TEXT,
    error_stage      TEXT,
    backtrace        TEXT,
    progress         REAL NOT NULL DEFAULT -1,  -- below 0: none told
    progress_message TEXT,
    schedule         TEXT,
    fire_time        INTEGER,
    parent_id        TEXT,
    generation       INTEGER NOT NULL DEFAULT 0,
    sends            INTEGER NOT NULL DEFAULT 0,
    sent_at          INTEGER,          -- when its message was last sent, or seen
    retry_at         INTEGER,
    created_at       INTEGER NOT NULL,
    enqueued_at      INTEGER NOT NULL,
    started_at       INTEGER,
    finished_at      INTEGER,
    updated_at       INTEGER NOT NULL,
    duration_ms      INTEGER,          -- of the last attempt
    CHECK ((status = 'RUNNING') = (token IS NOT NULL)),
    CHECK ((status IN ('SUCCESS', 'FAILURE', 'CANCELLED')) = (finished_at IS NOT NULL))
);
CREATE INDEX sqjobs_jobs_by_created ON sqjobs_jobs (created_at DESC, id DESC);
CREATE INDEX sqjobs_jobs_open ON sqjobs_jobs (updated_at) WHERE status IN ('RUNNING', 'RETRY');
CREATE INDEX sqjobs_jobs_by_parent ON sqjobs_jobs (parent_id) WHERE parent_id IS NOT NULL;

CREATE TABLE sqjobs_attempts (
    job_id         TEXT NOT NULL,
    number         INTEGER NOT NULL,
    token          TEXT NOT NULL,
    worker_id      TEXT NOT NULL,
    outcome        TEXT NOT NULL DEFAULT 'running',
    stage          TEXT,
    error          TEXT,
    backtrace      TEXT,
    logs           TEXT,
    warnings       TEXT,
    module         TEXT NOT NULL,
    module_version TEXT,
    module_digest  TEXT NOT NULL,
    started_at     INTEGER NOT NULL,
    finished_at    INTEGER,
    duration_ms    INTEGER,
    PRIMARY KEY (job_id, number)
);

-- What is to be sent. A row is written in the transaction that changes the job's row.
CREATE TABLE sqjobs_outbox (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id        TEXT NOT NULL,
    job_name      TEXT NOT NULL,
    queue         TEXT NOT NULL,
    args          TEXT NOT NULL DEFAULT '[]',
    kwargs        TEXT NOT NULL DEFAULT '{}',
    message_group TEXT,
    enqueued_at   INTEGER NOT NULL,
    not_before    INTEGER NOT NULL DEFAULT 0,
    send_number   INTEGER NOT NULL DEFAULT 1,
    body          TEXT,               -- an exact body to send instead of the job's own (dead letters)
    taken_until   INTEGER NOT NULL DEFAULT 0,
    tries         INTEGER NOT NULL DEFAULT 0,
    error         text
);
CREATE INDEX sqjobs_outbox_due ON sqjobs_outbox (not_before, id);
CREATE INDEX sqjobs_outbox_by_job ON sqjobs_outbox (job_id);

-- What was put aside: messages that can't be run, and jobs that failed for good.
CREATE TABLE sqjobs_dead (
    id          TEXT PRIMARY KEY,     -- the job's id; the message's where the job's isn't known or isn't its own
    kind        TEXT NOT NULL CHECK (kind IN ('malformed', 'unknown-job', 'id-conflict', 'failed',
                                              'crashed', 'undeliverable', 'lost')),
    queue       TEXT NOT NULL,
    job         TEXT,
    job_id      TEXT,
    message_id  TEXT,
    reason      TEXT NOT NULL,
    body        BLOB NOT NULL,        -- exactly as received
    attributes  TEXT NOT NULL DEFAULT '{}',
    body_bytes  INTEGER NOT NULL,
    message_group TEXT,
    received_at INTEGER NOT NULL
);
CREATE INDEX sqjobs_dead_by_received ON sqjobs_dead (received_at DESC, id DESC);
CREATE INDEX sqjobs_dead_by_kind ON sqjobs_dead (kind, queue);

-- What workers serve, for those who add jobs and have no modules.
CREATE TABLE sqjobs_deployed_jobs (
    name           TEXT PRIMARY KEY,
    module         TEXT NOT NULL,
    module_version TEXT,
    module_digest  TEXT NOT NULL,
    queue          TEXT,
    records_result INTEGER NOT NULL,
    description    TEXT NOT NULL,
    seen_at        INTEGER NOT NULL
);

-- The stable door for applications: see docs/database.md.
CREATE VIEW sqjobs_job_status AS
SELECT id                                    AS job_id,
       name                                  AS job_name,
       status,
       result,
       CASE WHEN error IS NULL THEN NULL
            ELSE error || coalesce(char(10) || backtrace, '') END AS traceback,
       strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1000.0, 'unixepoch') AS updated_at,
       queue,
       args,
       kwargs,
       error,
       error_kind,
       error_stage,
       attempts,
       module,
       module_version,
       module_digest,
       worker_id,
       schedule,
       strftime('%Y-%m-%dT%H:%M:%fZ', fire_time / 1000.0, 'unixepoch') AS fire_time,
       parent_id,
       CASE WHEN progress >= 0 THEN progress END AS progress,
       progress_message,
       strftime('%Y-%m-%dT%H:%M:%fZ', enqueued_at / 1000.0, 'unixepoch') AS enqueued_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', started_at / 1000.0, 'unixepoch') AS started_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', finished_at / 1000.0, 'unixepoch') AS finished_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', retry_at / 1000.0, 'unixepoch') AS retry_at,
       duration_ms
FROM sqjobs_jobs;
