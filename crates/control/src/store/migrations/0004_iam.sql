-- Users of the account, their access keys and policies. Secrets are sealed with a key that is not in the database.
-- Every change counts `iam` up by one: that is how a running server sees it.

INSERT INTO counters (name, value) VALUES ('iam', 0);

-- Two names that differ in case alone are one name.
CREATE TABLE iam_users (
    name       TEXT   NOT NULL COLLATE NOCASE PRIMARY KEY,
    id         TEXT   NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

CREATE TABLE iam_access_keys (
    id            TEXT    NOT NULL PRIMARY KEY,
    user_id       TEXT    NOT NULL REFERENCES iam_users (id) ON DELETE CASCADE,
    sealed_secret BLOB    NOT NULL,
    active        BOOLEAN NOT NULL,
    created_at    BIGINT  NOT NULL
);

CREATE INDEX iam_access_keys_by_user ON iam_access_keys (user_id);

CREATE TABLE iam_policies (
    user_id    TEXT   NOT NULL REFERENCES iam_users (id) ON DELETE CASCADE,
    name       TEXT   NOT NULL,
    document   TEXT   NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (user_id, name)
);
