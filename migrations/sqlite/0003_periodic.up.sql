-- Periodic entries, their ticks, and the door through which other applications add jobs.

-- One row for each entry, as it stands: what is defined by its module, over that by a configuration
-- file, over that by commands.
CREATE TABLE sqjobs_periodic (
    name            TEXT PRIMARY KEY,
    source          TEXT NOT NULL,    -- module, config or command: the strongest that defines it
    job             TEXT NOT NULL,
    queue           TEXT,             -- null: the one that the deployed job describes
    schedule        TEXT,             -- crontab expression, read in `timezone`
    timezone        TEXT,
    every_ms        INTEGER,           -- or an interval, counted from 1970
    args            TEXT NOT NULL DEFAULT '[]',
    kwargs          TEXT NOT NULL DEFAULT '{}',
    catch_up        TEXT NOT NULL DEFAULT 'last' CHECK (catch_up IN ('none', 'last', 'all')),
    max_lateness_ms INTEGER,           -- null: one period, at most 24 h (`last`); no bound (`all`)
    grace_ms        INTEGER NOT NULL DEFAULT 60000,
    overlap         TEXT NOT NULL DEFAULT 'allow' CHECK (overlap IN ('allow', 'skip', 'replace')),
    jitter_ms       INTEGER NOT NULL DEFAULT 0,
    start_at        INTEGER,
    end_at          INTEGER,
    enabled         INTEGER NOT NULL DEFAULT 1,
    aside           TEXT,             -- why the entry can't fire; null while it can
    next_fire_at    INTEGER,           -- guards each claim; null when no tick will come
    due_at          INTEGER,           -- the same with the entry's jitter: when it is claimed
    last_fire_at    INTEGER,           -- the last tick that was dealt with, queued or skipped
    last_job_id     TEXT,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    CHECK ((schedule IS NULL) = (timezone IS NULL)),
    CHECK ((schedule IS NULL) <> (every_ms IS NULL)),
    CHECK ((next_fire_at IS NULL) = (due_at IS NULL))
);
CREATE INDEX sqjobs_periodic_due ON sqjobs_periodic (due_at) WHERE enabled = 1 AND aside IS NULL;
CREATE INDEX sqjobs_periodic_by_job ON sqjobs_periodic (job);

-- Every definition that was ever seen. Of each source the one seen last stands, so that a host
-- with an older module turns nothing back.
CREATE TABLE sqjobs_periodic_definitions (
    name          TEXT NOT NULL,
    source        TEXT NOT NULL CHECK (source IN ('module', 'config', 'command')),
    digest        TEXT NOT NULL,      -- of the module, or of what defines it
    definition    TEXT NOT NULL,      -- JSON
    first_seen_at INTEGER NOT NULL,
    PRIMARY KEY (name, source, digest)
);

-- What became of each tick.
CREATE TABLE sqjobs_periodic_ticks (
    schedule    TEXT NOT NULL,
    fire_time   INTEGER NOT NULL,
    outcome     TEXT NOT NULL CHECK (outcome IN ('queued', 'skipped')),
    reason      TEXT,
    job_id      TEXT,
    last_time   INTEGER NOT NULL,      -- of a run of skipped ticks; else the fire time
    ticks       INTEGER NOT NULL DEFAULT 1,
    claimed_at  INTEGER NOT NULL,
    late_ms     INTEGER NOT NULL,      -- from the instant at which the last of them was due
    beater      TEXT NOT NULL,
    PRIMARY KEY (schedule, fire_time)
);
CREATE INDEX sqjobs_periodic_ticks_by_claimed ON sqjobs_periodic_ticks (claimed_at);

-- Beaters that live, for people: no claim depends on them.
CREATE TABLE sqjobs_beaters (
    id           TEXT PRIMARY KEY,
    host         TEXT NOT NULL,
    pid          INTEGER NOT NULL,
    version      TEXT NOT NULL,
    zones        TEXT NOT NULL,       -- version of the time zone database
    queues       TEXT NOT NULL,
    clock_off_ms INTEGER NOT NULL,
    started_at   INTEGER NOT NULL,
    renewed_at   INTEGER NOT NULL
);

-- Which jobs each worker's modules hold.
CREATE TABLE sqjobs_worker_jobs (
    worker_id TEXT NOT NULL,
    job       TEXT NOT NULL,
    PRIMARY KEY (worker_id, job)
);
CREATE INDEX sqjobs_worker_jobs_by_job ON sqjobs_worker_jobs (job);

-- Queues that are configured or served: other applications add jobs to no others.
CREATE TABLE sqjobs_served_queues (
    name    TEXT PRIMARY KEY,
    seen_at INTEGER NOT NULL
);
