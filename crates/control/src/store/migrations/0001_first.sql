-- Times are milliseconds since the Unix epoch. `sequence` is the order of creation: lists are paged by it.
-- The words of `state`, `status` and `aim` are those of the wire. Columns ending in `_json` hold plain data that no
-- query looks into.

CREATE TABLE counters (
    name  TEXT   NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);

INSERT INTO counters (name, value) VALUES ('sequence', 0);

CREATE TABLE images (
    id                    TEXT   NOT NULL PRIMARY KEY,
    sequence              BIGINT NOT NULL UNIQUE,
    name                  TEXT   NOT NULL UNIQUE,
    state                 TEXT   NOT NULL,
    latest_active_version BIGINT,
    latest_failed_version BIGINT,
    tags_json             TEXT   NOT NULL,
    created_at            BIGINT NOT NULL,
    updated_at            BIGINT NOT NULL
);

CREATE TABLE image_versions (
    image_id        TEXT   NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    version         BIGINT NOT NULL,
    state           TEXT   NOT NULL,
    status          TEXT   NOT NULL,
    definition_json TEXT   NOT NULL,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    PRIMARY KEY (image_id, version)
);

CREATE TABLE builds (
    id                    TEXT   NOT NULL PRIMARY KEY,
    sequence              BIGINT NOT NULL UNIQUE,
    image_id              TEXT   NOT NULL,
    version               BIGINT NOT NULL,
    state                 TEXT   NOT NULL,
    state_reason          TEXT,
    memory_snapshot_bytes BIGINT,
    code_install_bytes    BIGINT,
    disk_snapshot_bytes   BIGINT,
    created_at            BIGINT NOT NULL,
    FOREIGN KEY (image_id, version) REFERENCES image_versions (image_id, version) ON DELETE CASCADE
);

CREATE INDEX builds_by_version ON builds (image_id, version, sequence);

-- No reference to the image: the record of a terminated microVM may outlive it.
CREATE TABLE microvms (
    id            TEXT   NOT NULL PRIMARY KEY,
    sequence      BIGINT NOT NULL UNIQUE,
    endpoint      TEXT   NOT NULL UNIQUE,
    image_id      TEXT   NOT NULL,
    image_version BIGINT NOT NULL,
    state         TEXT   NOT NULL,
    aim           TEXT   NOT NULL,
    state_reason  TEXT,
    spec_json     TEXT   NOT NULL,
    terms_json    TEXT   NOT NULL,
    started_at    BIGINT NOT NULL,
    suspended_at  BIGINT,
    terminated_at BIGINT
);

CREATE INDEX microvms_by_image ON microvms (image_id, sequence);
CREATE INDEX microvms_by_end ON microvms (terminated_at);

CREATE TABLE client_tokens (
    operation   TEXT   NOT NULL,
    token       TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,
    resource_id TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (operation, token)
);

CREATE INDEX client_tokens_by_age ON client_tokens (created_at);
