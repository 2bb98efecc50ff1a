-- Feature spaces, and which blocks of features are complete. A block that is not in here does not exist, whatever lies on disk.

CREATE TABLE feature_spaces (
    space_id VARCHAR PRIMARY KEY, recipe VARCHAR NOT NULL, variant VARCHAR NOT NULL, dim INTEGER NOT NULL, fingerprint JSON NOT NULL,
    run_id VARCHAR NOT NULL, added_at TIMESTAMP NOT NULL
);

CREATE TABLE checkpoints (
    space_id VARCHAR, step INTEGER, weight DOUBLE NOT NULL, path VARCHAR NOT NULL, bytes BIGINT NOT NULL, digest VARCHAR NOT NULL,
    PRIMARY KEY (space_id, step)
);

CREATE TABLE feature_segments (
    space_id VARCHAR, segment VARCHAR, rows BIGINT NOT NULL, dim INTEGER NOT NULL, block_rows INTEGER NOT NULL, sealed BOOLEAN NOT NULL,
    PRIMARY KEY (space_id, segment)
);

CREATE TABLE blocks (
    space_id VARCHAR, segment VARCHAR, block INTEGER, rows INTEGER NOT NULL, rejected INTEGER NOT NULL, tokens BIGINT NOT NULL,
    seconds DOUBLE NOT NULL, checksum UINTEGER NOT NULL, run_id VARCHAR NOT NULL, committed_at TIMESTAMP NOT NULL,
    PRIMARY KEY (space_id, segment, block)
);

CREATE TABLE feature_rows (
    space_id VARCHAR NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, tokens INTEGER, target_tokens INTEGER, loss DOUBLE, norm DOUBLE,
    status VARCHAR NOT NULL
);
