-- The same moments as `started_at` and `suspended_at`, on the clock of a boot: its id and milliseconds. Durations are
-- counted on it. Rows of before have none until the next start.
ALTER TABLE microvms ADD COLUMN started_boot TEXT;
ALTER TABLE microvms ADD COLUMN suspended_boot TEXT;
