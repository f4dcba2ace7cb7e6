-- Periodic entries, their ticks, and the door through which other applications add jobs.

-- One row for each entry, as it stands: what is defined by its module, over that by a configuration
-- file, over that by commands.
CREATE TABLE periodic (
    name            text PRIMARY KEY,
    source          text NOT NULL,    -- module, config or command: the strongest that defines it
    job             text NOT NULL,
    queue           text,             -- null: the one that the deployed job describes
    schedule        text,             -- crontab expression, read in `timezone`
    timezone        text,
    every_ms        bigint,           -- or an interval, counted from 1970
    args            text NOT NULL DEFAULT '[]',
    kwargs          text NOT NULL DEFAULT '{}',
    catch_up        text NOT NULL DEFAULT 'last' CHECK (catch_up IN ('none', 'last', 'all')),
    max_lateness_ms bigint,           -- null: one period, at most 24 h (`last`); no bound (`all`)
    grace_ms        bigint NOT NULL DEFAULT 60000,
    overlap         text NOT NULL DEFAULT 'allow' CHECK (overlap IN ('allow', 'skip', 'replace')),
    jitter_ms       bigint NOT NULL DEFAULT 0,
    start_at        bigint,
    end_at          bigint,
    enabled         bigint NOT NULL DEFAULT 1,
    aside           text,             -- why the entry can't fire; null while it can
    next_fire_at    bigint,           -- guards each claim; null when no tick will come
    due_at          bigint,           -- the same with the entry's jitter: when it is claimed
    last_fire_at    bigint,           -- the last tick that was dealt with, queued or skipped
    last_job_id     text,
    created_at      bigint NOT NULL,
    updated_at      bigint NOT NULL,
    CHECK ((schedule IS NULL) = (timezone IS NULL)),
    CHECK ((schedule IS NULL) <> (every_ms IS NULL)),
    CHECK ((next_fire_at IS NULL) = (due_at IS NULL))
);
CREATE INDEX periodic_due ON periodic (due_at) WHERE enabled = 1 AND aside IS NULL;
CREATE INDEX periodic_by_job ON periodic (job);

-- Every definition that was ever seen. Of each source the one seen last stands, so that a host
-- with an older module turns nothing back.
CREATE TABLE periodic_definitions (
    name          text NOT NULL,
    source        text NOT NULL CHECK (source IN ('module', 'config', 'command')),
    digest        text NOT NULL,      -- of the module, or of what defines it
    definition    text NOT NULL,      -- JSON
    first_seen_at bigint NOT NULL,
    PRIMARY KEY (name, source, digest)
);

-- What became of each tick.
CREATE TABLE periodic_ticks (
    schedule    text NOT NULL,
    fire_time   bigint NOT NULL,
    outcome     text NOT NULL CHECK (outcome IN ('queued', 'skipped')),
    reason      text,
    job_id      text,
    last_time   bigint NOT NULL,      -- of a run of skipped ticks; else the fire time
    ticks       bigint NOT NULL DEFAULT 1,
    claimed_at  bigint NOT NULL,
    late_ms     bigint NOT NULL,      -- from the instant at which the last of them was due
    beater      text NOT NULL,
    PRIMARY KEY (schedule, fire_time)
);
CREATE INDEX periodic_ticks_by_claimed ON periodic_ticks (claimed_at);

-- Beaters that live, for people: no claim depends on them.
CREATE TABLE beaters (
    id           text PRIMARY KEY,
    host         text NOT NULL,
    pid          bigint NOT NULL,
    version      text NOT NULL,
    zones        text NOT NULL,       -- version of the time zone database
    queues       text NOT NULL,
    clock_off_ms bigint NOT NULL,
    started_at   bigint NOT NULL,
    renewed_at   bigint NOT NULL
);

-- Which jobs each worker's modules hold.
CREATE TABLE worker_jobs (
    worker_id text NOT NULL,
    job       text NOT NULL,
    PRIMARY KEY (worker_id, job)
);
CREATE INDEX worker_jobs_by_job ON worker_jobs (job);

-- Queues that are configured or served: other applications add jobs to no others.
CREATE TABLE served_queues (
    name    text PRIMARY KEY,
    seen_at bigint NOT NULL
);

-- An application that adds a job by inserting into the outbox need not make these up.
ALTER TABLE outbox ALTER COLUMN job_id SET DEFAULT CAST(gen_random_uuid() AS text);
ALTER TABLE outbox ALTER COLUMN enqueued_at
    SET DEFAULT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint);
