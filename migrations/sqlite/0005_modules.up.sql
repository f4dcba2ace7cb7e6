-- Which version of a module serves, for all hosts that share the database.

CREATE TABLE sqjobs_modules (
    name           TEXT PRIMARY KEY,
    mode           TEXT NOT NULL DEFAULT 'follow' CHECK (mode IN ('follow', 'held', 'pinned')),
    digest         TEXT,             -- what serves instead of the folder's file
    since          INTEGER NOT NULL, -- when that was decided
    serving        TEXT,             -- what a host took into service last
    canary_digest  TEXT,
    canary_share   INTEGER NOT NULL DEFAULT 0,  -- of 10,000 attempts
    canary_since   INTEGER,
    CHECK ((mode = 'follow') = (digest IS NULL))
);

CREATE TABLE sqjobs_module_versions (
    name           TEXT NOT NULL,
    digest         TEXT NOT NULL,
    version        TEXT,
    size           INTEGER NOT NULL,
    first_seen_at  INTEGER NOT NULL,
    served_at      INTEGER,          -- when it was last taken into service
    refused_at     INTEGER,
    refused_reason TEXT,
    runs           INTEGER NOT NULL DEFAULT 0,  -- since the canary began
    failures       INTEGER NOT NULL DEFAULT 0,
    bytes          BLOB,             -- the component, while it is kept
    PRIMARY KEY (name, digest)
);

CREATE TABLE sqjobs_module_history (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT NOT NULL,
    at      INTEGER NOT NULL,
    event   TEXT NOT NULL,
    digest  TEXT,
    version TEXT,
    host    TEXT NOT NULL,
    reason  TEXT
);
CREATE INDEX sqjobs_module_history_by_name ON sqjobs_module_history (name, id);

-- Which module holds a job name that several claim.
CREATE TABLE sqjobs_job_owners (
    job    TEXT PRIMARY KEY,
    module TEXT NOT NULL,
    since  INTEGER NOT NULL
);
