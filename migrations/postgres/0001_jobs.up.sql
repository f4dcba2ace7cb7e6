-- Times are milliseconds since 1970 (UTC): the views show them as timestamps. JSON is text, kept
-- as it was sent or returned: a binary JSON column reorders keys and rejects \u0000.
-- The tables lie in the schema that the connection's search_path names (`sqjobs` by default).

CREATE TABLE workers (
    id          text PRIMARY KEY,
    host        text NOT NULL,
    pid         bigint NOT NULL,
    version     text NOT NULL,
    queues      text NOT NULL,
    started_at  bigint NOT NULL,
    renewed_at  bigint NOT NULL,      -- by the database's clock; claims live while this is fresh
    lease_ms    bigint NOT NULL
);

CREATE TABLE jobs (
    id               text PRIMARY KEY,
    name             text NOT NULL,
    queue            text NOT NULL,
    status           text NOT NULL DEFAULT 'PENDING'
                     CHECK (status IN ('PENDING', 'RUNNING', 'RETRY', 'SUCCESS', 'FAILURE', 'CANCELLED')),
    args             text,            -- null once pruned
    kwargs           text,
    fingerprint      text NOT NULL,   -- of name and arguments: another one under this id is a conflict
    message_group    text,
    attempts         bigint NOT NULL DEFAULT 0,  -- runs begun
    spent            bigint NOT NULL DEFAULT 0,  -- attempts that count against the retry policy
    crashes          bigint NOT NULL DEFAULT 0,  -- runs begun whose worker died
    token            text,            -- owner of the running attempt
    worker_id        text,
    module           text,
    module_version   text,
    module_digest    text,
    result           text,
    error            text,
    error_kind       text,
    error_stage      text,
    backtrace        text,
    progress         double precision NOT NULL DEFAULT -1,  -- below 0: none told
    progress_message text,
    schedule         text,
    fire_time        bigint,
    parent_id        text,
    generation       bigint NOT NULL DEFAULT 0,
    sends            bigint NOT NULL DEFAULT 0,
    sent_at          bigint,          -- when its message was last sent, or seen
    retry_at         bigint,
    created_at       bigint NOT NULL,
    enqueued_at      bigint NOT NULL,
    started_at       bigint,
    finished_at      bigint,
    updated_at       bigint NOT NULL,
    duration_ms      bigint,          -- of the last attempt
    CHECK ((status = 'RUNNING') = (token IS NOT NULL)),
    CHECK ((status IN ('SUCCESS', 'FAILURE', 'CANCELLED')) = (finished_at IS NOT NULL))
);
CREATE INDEX jobs_by_created ON jobs (created_at DESC, id DESC);
CREATE INDEX jobs_open ON jobs (updated_at) WHERE status IN ('RUNNING', 'RETRY');
CREATE INDEX jobs_by_parent ON jobs (parent_id) WHERE parent_id IS NOT NULL;

CREATE TABLE attempts (
    job_id         text NOT NULL,
    number         bigint NOT NULL,
    token          text NOT NULL,
    worker_id      text NOT NULL,
    outcome        text NOT NULL DEFAULT 'running',
    stage          text,
    error          text,
    backtrace      text,
    logs           text,
    warnings       text,
    module         text NOT NULL,
    module_version text,
    module_digest  text NOT NULL,
    started_at     bigint NOT NULL,
    finished_at    bigint,
    duration_ms    bigint,
    PRIMARY KEY (job_id, number)
);

-- What is to be sent. A row is written in the transaction that changes the job's row.
CREATE TABLE outbox (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id        text NOT NULL,
    job_name      text NOT NULL,
    queue         text NOT NULL,
    args          text NOT NULL DEFAULT '[]',
    kwargs        text NOT NULL DEFAULT '{}',
    message_group text,
    enqueued_at   bigint NOT NULL,
    not_before    bigint NOT NULL DEFAULT 0,
    send_number   bigint NOT NULL DEFAULT 1,
    body          text,               -- an exact body to send instead of the job's own (dead letters)
    taken_until   bigint NOT NULL DEFAULT 0,
    tries         bigint NOT NULL DEFAULT 0,
    error         text
);
CREATE INDEX outbox_due ON outbox (not_before, id);
CREATE INDEX outbox_by_job ON outbox (job_id);

-- What was put aside: messages that can't be run, and jobs that failed for good.
CREATE TABLE dead (
    id          text PRIMARY KEY,     -- the job's id; the message's where the job's isn't known or isn't its own
    kind        text NOT NULL CHECK (kind IN ('malformed', 'unknown-job', 'id-conflict', 'failed',
                                              'crashed', 'undeliverable', 'lost')),
    queue       text NOT NULL,
    job         text,
    job_id      text,
    message_id  text,
    reason      text NOT NULL,
    body        bytea NOT NULL,       -- exactly as received
    attributes  text NOT NULL DEFAULT '{}',
    body_bytes  bigint NOT NULL,
    message_group text,
    received_at bigint NOT NULL
);
CREATE INDEX dead_by_received ON dead (received_at DESC, id DESC);
CREATE INDEX dead_by_kind ON dead (kind, queue);

-- What workers serve, for those who add jobs and have no modules.
CREATE TABLE deployed_jobs (
    name           text PRIMARY KEY,
    module         text NOT NULL,
    module_version text,
    module_digest  text NOT NULL,
    queue          text,
    records_result bigint NOT NULL,
    description    text NOT NULL,
    seen_at        bigint NOT NULL
);

-- The stable door for applications: see docs/database.md.
CREATE VIEW job_status AS
SELECT id                                    AS job_id,
       name                                  AS job_name,
       status,
       result,
       CASE WHEN error IS NULL THEN NULL
            ELSE error || coalesce(E'\n' || backtrace, '') END AS traceback,
       to_timestamp(created_at / 1000.0)     AS created_at,
       to_timestamp(updated_at / 1000.0)     AS updated_at,
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
       to_timestamp(fire_time / 1000.0)      AS fire_time,
       parent_id,
       CASE WHEN progress >= 0 THEN progress END AS progress,
       progress_message,
       to_timestamp(enqueued_at / 1000.0)    AS enqueued_at,
       to_timestamp(started_at / 1000.0)     AS started_at,
       to_timestamp(finished_at / 1000.0)    AS finished_at,
       to_timestamp(retry_at / 1000.0)       AS retry_at,
       duration_ms
FROM jobs;
