-- Which chosen example stands for which row; near-duplicates by their columns; every attempt at a stage.

ALTER TABLE candidates ADD COLUMN representative INTEGER;
ALTER TABLE candidates ADD COLUMN cosine FLOAT;

ALTER TABLE rejects ADD COLUMN like_id VARCHAR;
ALTER TABLE rejects ADD COLUMN likeness DOUBLE;
ALTER TABLE rejects ADD COLUMN kept_id VARCHAR;
UPDATE rejects SET like_id = regexp_extract(detail, 'near_duplicate of ([0-9a-f]{32})', 1),
    likeness = TRY_CAST(regexp_extract(detail, 'likeness ([0-9.]+)', 1) AS DOUBLE),
    kept_id = regexp_extract(detail, 'kept: ([0-9a-f]{32})', 1)
    WHERE stage = 'near-duplicates';

CREATE TABLE stage_attempts (
    run_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, attempt INTEGER NOT NULL, started_at TIMESTAMP NOT NULL, seconds DOUBLE,
    peak_bytes BIGINT, outcome VARCHAR, PRIMARY KEY (run_id, stage, attempt)
);
INSERT INTO stage_attempts SELECT run_id, stage, 1, finished_at - to_microseconds((seconds * 1e6)::BIGINT), seconds, peak_bytes, 'complete' FROM stages;
