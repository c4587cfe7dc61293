-- The number of the version made last: numbers never go back, also when the newest version is removed.
ALTER TABLE images ADD COLUMN last_version BIGINT NOT NULL DEFAULT 1;
