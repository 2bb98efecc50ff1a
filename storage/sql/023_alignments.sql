-- Signals of a run that are computed from features for its conditions; null where a column was not asked for or has no value.

CREATE TABLE alignments (
    run_id VARCHAR NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, pool_alignment DOUBLE, cluster_alignment DOUBLE,
    target_alignment DOUBLE, alike BIGINT
);
