-- Which chosen example stands for which row; near-duplicates by their columns; every attempt at a stage.

ALTER TABLE candidates ADD COLUMN representative INTEGER;
ALTER TABLE candidates ADD COLUMN cosine FLOAT;
COMMENT ON COLUMN candidates.representative IS 'rank, within its group, of the chosen example that is nearest to it; null where it was not computed';
COMMENT ON COLUMN candidates.cosine IS 'cosine between the feature of the row and that of its representative';

ALTER TABLE rejects ADD COLUMN like_id VARCHAR;
ALTER TABLE rejects ADD COLUMN likeness DOUBLE;
ALTER TABLE rejects ADD COLUMN kept_id VARCHAR;
COMMENT ON COLUMN rejects.like_id IS 'near-duplicates: the earlier example that it nearly repeats';
COMMENT ON COLUMN rejects.likeness IS 'near-duplicates: estimated Jaccard likeness of their sets of three-word runs';
COMMENT ON COLUMN rejects.kept_id IS 'near-duplicates: the example that stays in the pool for both';
UPDATE rejects SET like_id = regexp_extract(detail, 'near_duplicate of ([0-9a-f]{32})', 1),
    likeness = TRY_CAST(regexp_extract(detail, 'likeness ([0-9.]+)', 1) AS DOUBLE),
    kept_id = regexp_extract(detail, 'kept: ([0-9a-f]{32})', 1)
    WHERE stage = 'near-duplicates';

CREATE TABLE stage_attempts (
    run_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, attempt INTEGER NOT NULL, started_at TIMESTAMP NOT NULL, seconds DOUBLE,
    peak_bytes BIGINT, outcome VARCHAR, PRIMARY KEY (run_id, stage, attempt)
);
COMMENT ON TABLE stage_attempts IS 'every time that a stage of a run was started; the table stages holds their sums';
COMMENT ON COLUMN stage_attempts.run_id IS 'the run';
COMMENT ON COLUMN stage_attempts.stage IS 'the stage';
COMMENT ON COLUMN stage_attempts.attempt IS 'number of the attempt at this stage, from 1';
COMMENT ON COLUMN stage_attempts.started_at IS 'UTC';
COMMENT ON COLUMN stage_attempts.seconds IS 'wall time; of a process that was killed, up to its last commit; null while under way';
COMMENT ON COLUMN stage_attempts.peak_bytes IS 'peak resident memory of the process by the end of the attempt, bytes; null of a process that was killed';
COMMENT ON COLUMN stage_attempts.outcome IS 'complete, failed, interrupted or killed; null while under way';
INSERT INTO stage_attempts SELECT run_id, stage, 1, finished_at - to_microseconds((seconds * 1e6)::BIGINT), seconds, peak_bytes, 'complete' FROM stages;

COMMENT ON COLUMN stages.seconds IS 'wall time, summed over all attempts';
COMMENT ON COLUMN stages.peak_bytes IS 'peak resident memory of the process by the end of the stage, bytes: the largest of all attempts';
COMMENT ON COLUMN stages.detail IS 'what the stage came to over all attempts';
