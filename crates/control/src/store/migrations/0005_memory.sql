-- What a microVM's size counts for in the quota of memory: its baseline in MiB. A read of live microVMs finds it in the
-- index.
ALTER TABLE microvms ADD COLUMN memory_mib BIGINT NOT NULL DEFAULT 0;
UPDATE microvms SET memory_mib = COALESCE(json_extract(spec_json, '$.size'), 0);
CREATE INDEX microvms_alive ON microvms (state, memory_mib) WHERE terminated_at IS NULL;
