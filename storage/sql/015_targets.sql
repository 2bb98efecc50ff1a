-- Target sets: examples that selections stand for in place of their pool's mean. They lie in segments of their own.

ALTER TABLE segments ADD COLUMN target BOOLEAN DEFAULT false;
ALTER TABLE runs ADD COLUMN target_id VARCHAR;
ALTER TABLE run_groups ADD COLUMN target_share DOUBLE;

CREATE TABLE target_sets (target_id VARCHAR PRIMARY KEY, name VARCHAR NOT NULL, run_id VARCHAR NOT NULL, added_at TIMESTAMP NOT NULL);

CREATE TABLE target_examples (
    target_id VARCHAR NOT NULL, part VARCHAR NOT NULL, example_id VARCHAR NOT NULL, weight DOUBLE NOT NULL,
    PRIMARY KEY (target_id, part, example_id)
);

CREATE TABLE target_nearest (
    run_id VARCHAR, part VARCHAR, example_id VARCHAR, chosen_id VARCHAR NOT NULL, chosen_cosine FLOAT NOT NULL,
    pool_id VARCHAR NOT NULL, pool_cosine FLOAT NOT NULL, PRIMARY KEY (run_id, part, example_id)
);

CREATE TABLE selection_targets (
    run_id VARCHAR, example_id VARCHAR, part VARCHAR NOT NULL, wanted_id VARCHAR NOT NULL, cosine FLOAT NOT NULL,
    PRIMARY KEY (run_id, example_id)
);

CREATE TABLE target_scans (target_id VARCHAR, segment VARCHAR, rows BIGINT NOT NULL, PRIMARY KEY (target_id, segment));

CREATE TABLE target_repeats (target_id VARCHAR, example_id VARCHAR, like_id VARCHAR NOT NULL, PRIMARY KEY (target_id, example_id));
