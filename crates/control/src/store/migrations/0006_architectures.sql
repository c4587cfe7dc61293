-- What a build is for; a version has one build for each of its architectures. Until now it had one build, and its
-- definition said what that is for.
ALTER TABLE builds ADD COLUMN architecture TEXT NOT NULL DEFAULT 'X86_64';
UPDATE builds SET architecture = COALESCE(
    (SELECT json_extract(v.definition_json, '$.plan.architecture') FROM image_versions v
     WHERE v.image_id = builds.image_id AND v.version = builds.version),
    architecture
);
CREATE UNIQUE INDEX builds_by_architecture ON builds (image_id, version, architecture);
