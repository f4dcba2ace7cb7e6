-- Which version of a module serves, for all hosts that share the database.

CREATE TABLE modules (
    name           text PRIMARY KEY,
    mode           text NOT NULL DEFAULT 'follow' CHECK (mode IN ('follow', 'held', 'pinned')),
    digest         text,             -- what serves instead of the folder's file
    since          bigint NOT NULL, -- when that was decided
    serving        text,             -- what a host took into service last
    canary_digest  text,
    canary_share   bigint NOT NULL DEFAULT 0,  -- of 10,000 attempts
    canary_since   bigint,
    CHECK ((mode = 'follow') = (digest IS NULL))
);

CREATE TABLE module_versions (
    name           text NOT NULL,
    digest         text NOT NULL,
    version        text,
    size           bigint NOT NULL,
    first_seen_at  bigint NOT NULL,
    served_at      bigint,          -- when it was last taken into service
    refused_at     bigint,
    refused_reason text,
    runs           bigint NOT NULL DEFAULT 0,  -- since the canary began
    failures       bigint NOT NULL DEFAULT 0,
    bytes          bytea,             -- the component, while it is kept
    PRIMARY KEY (name, digest)
);

CREATE TABLE module_history (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name    text NOT NULL,
    at      bigint NOT NULL,
    event   text NOT NULL,
    digest  text,
    version text,
    host    text NOT NULL,
    reason  text
);
CREATE INDEX module_history_by_name ON module_history (name, id);

-- Which module holds a job name that several claim.
CREATE TABLE job_owners (
    job    text PRIMARY KEY,
    module text NOT NULL,
    since  bigint NOT NULL
);
