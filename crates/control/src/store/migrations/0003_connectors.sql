-- `version` is the newest version, `active_version` the one in force. A version's number is its place in its list.
CREATE TABLE connectors (
    id                 TEXT   NOT NULL PRIMARY KEY,
    sequence           BIGINT NOT NULL UNIQUE,
    name               TEXT   NOT NULL UNIQUE,
    state              TEXT   NOT NULL,
    state_reason       TEXT,
    state_reason_code  TEXT,
    update_status      TEXT,
    update_reason      TEXT,
    update_reason_code TEXT,
    version            BIGINT NOT NULL,
    active_version     BIGINT,
    tags_json          TEXT   NOT NULL,
    created_at         BIGINT NOT NULL,
    modified_at        BIGINT NOT NULL
);

CREATE TABLE connector_versions (
    connector_id      TEXT   NOT NULL REFERENCES connectors (id) ON DELETE CASCADE,
    version           BIGINT NOT NULL,
    state             TEXT   NOT NULL,
    state_reason      TEXT,
    state_reason_code TEXT,
    definition_json   TEXT   NOT NULL,
    modified_at       BIGINT NOT NULL,
    PRIMARY KEY (connector_id, version)
);

-- Who uses a connector, and which version if it was named. No reference to the connector: one that is used is not
-- removed, and the record of a microVM that has ended may outlive it.
CREATE TABLE microvm_connectors (
    microvm_id        TEXT   NOT NULL REFERENCES microvms (id) ON DELETE CASCADE,
    connector_id      TEXT   NOT NULL,
    connector_version BIGINT NOT NULL,
    PRIMARY KEY (microvm_id, connector_id, connector_version)
);

CREATE INDEX microvm_connectors_by_connector ON microvm_connectors (connector_id);

CREATE TABLE image_version_connectors (
    image_id          TEXT   NOT NULL,
    version           BIGINT NOT NULL,
    connector_id      TEXT   NOT NULL,
    connector_version BIGINT,
    PRIMARY KEY (image_id, version, connector_id),
    FOREIGN KEY (image_id, version) REFERENCES image_versions (image_id, version) ON DELETE CASCADE
);

CREATE INDEX image_version_connectors_by_connector ON image_version_connectors (connector_id);
