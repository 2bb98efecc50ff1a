-- Feature spaces, and which blocks of features are complete. A block that is not in here does not exist, whatever lies on disk.

CREATE TABLE feature_spaces (
    space_id VARCHAR PRIMARY KEY, recipe VARCHAR NOT NULL, variant VARCHAR NOT NULL, dim INTEGER NOT NULL, fingerprint JSON NOT NULL,
    run_id VARCHAR NOT NULL, added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE feature_spaces IS 'everything that fixes what a feature means; features of two spaces never mix';
COMMENT ON COLUMN feature_spaces.space_id IS 'hash of the fingerprint';
COMMENT ON COLUMN feature_spaces.recipe IS 'hash of the settings that define the space, without the pool: a grown pool finds its space by it';
COMMENT ON COLUMN feature_spaces.variant IS 'gradient variant';
COMMENT ON COLUMN feature_spaces.dim IS 'feature dimension D';
COMMENT ON COLUMN feature_spaces.fingerprint IS 'model and adapter hashes, moments, template, maximum length, mask, checkpoints, projection';
COMMENT ON COLUMN feature_spaces.run_id IS 'run that made it';
COMMENT ON COLUMN feature_spaces.added_at IS 'UTC';

CREATE TABLE checkpoints (
    space_id VARCHAR, step INTEGER, weight DOUBLE NOT NULL, path VARCHAR NOT NULL, bytes BIGINT NOT NULL, digest VARCHAR NOT NULL,
    PRIMARY KEY (space_id, step)
);
COMMENT ON TABLE checkpoints IS 'adapter and Adam moments after some warm-up steps';
COMMENT ON COLUMN checkpoints.space_id IS 'the space';
COMMENT ON COLUMN checkpoints.step IS 'warm-up step';
COMMENT ON COLUMN checkpoints.weight IS 'share in the feature, proportional to the learning rate; they sum to 1';
COMMENT ON COLUMN checkpoints.path IS 'key under the root';
COMMENT ON COLUMN checkpoints.bytes IS 'size of the file';
COMMENT ON COLUMN checkpoints.digest IS 'blake2b-128 of the file, hex';

CREATE TABLE feature_segments (
    space_id VARCHAR, segment VARCHAR, rows BIGINT NOT NULL, dim INTEGER NOT NULL, block_rows INTEGER NOT NULL, sealed BOOLEAN NOT NULL,
    PRIMARY KEY (space_id, segment)
);
COMMENT ON TABLE feature_segments IS 'features of a segment''s examples in a space';
COMMENT ON COLUMN feature_segments.space_id IS 'the space';
COMMENT ON COLUMN feature_segments.segment IS 'the segment';
COMMENT ON COLUMN feature_segments.rows IS 'examples in the segment';
COMMENT ON COLUMN feature_segments.dim IS 'feature dimension D';
COMMENT ON COLUMN feature_segments.block_rows IS 'rows of a block, which is one chunk file';
COMMENT ON COLUMN feature_segments.sealed IS 'every block is complete: immutable from here on';

CREATE TABLE blocks (
    space_id VARCHAR, segment VARCHAR, block INTEGER, rows INTEGER NOT NULL, rejected INTEGER NOT NULL, tokens BIGINT NOT NULL,
    seconds DOUBLE NOT NULL, checksum UINTEGER NOT NULL, run_id VARCHAR NOT NULL, committed_at TIMESTAMP NOT NULL,
    PRIMARY KEY (space_id, segment, block)
);
COMMENT ON TABLE blocks IS 'complete feature blocks';
COMMENT ON COLUMN blocks.space_id IS 'the space';
COMMENT ON COLUMN blocks.segment IS 'the segment';
COMMENT ON COLUMN blocks.block IS 'number in the segment, from 0';
COMMENT ON COLUMN blocks.rows IS 'rows in the block';
COMMENT ON COLUMN blocks.rejected IS 'rows of it without a feature';
COMMENT ON COLUMN blocks.tokens IS 'tokens that went through the model, without padding';
COMMENT ON COLUMN blocks.seconds IS 'time to compute it';
COMMENT ON COLUMN blocks.checksum IS 'crc32c of its bytes, the same that ends the chunk file';
COMMENT ON COLUMN blocks.run_id IS 'run that computed it';
COMMENT ON COLUMN blocks.committed_at IS 'UTC';

CREATE TABLE feature_rows (
    space_id VARCHAR NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, tokens INTEGER, target_tokens INTEGER, loss DOUBLE, norm DOUBLE,
    status VARCHAR NOT NULL
);
COMMENT ON TABLE feature_rows IS 'what was measured at every row of a complete block';
COMMENT ON COLUMN feature_rows.space_id IS 'the space';
COMMENT ON COLUMN feature_rows.segment IS 'the segment';
COMMENT ON COLUMN feature_rows.row IS 'row in the segment, from 0';
COMMENT ON COLUMN feature_rows.tokens IS 'tokens of the example after truncation';
COMMENT ON COLUMN feature_rows.target_tokens IS 'tokens that are trained on';
COMMENT ON COLUMN feature_rows.loss IS 'mean cross-entropy over the target tokens, nats';
COMMENT ON COLUMN feature_rows.norm IS 'length of the gradient before it was normalised';
COMMENT ON COLUMN feature_rows.status IS 'ok, or the reason of its reject';
