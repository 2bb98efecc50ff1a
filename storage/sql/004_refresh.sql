-- A pool that grows: clusterings are found again, runs say what changed since the run before, and how far the data drifted.

ALTER TABLE clusterings ADD COLUMN recipe VARCHAR;

ALTER TABLE run_clusters ADD COLUMN inertia DOUBLE;
ALTER TABLE run_clusters ADD COLUMN inputs VARCHAR;
ALTER TABLE run_clusters ADD COLUMN copied_from VARCHAR;
ALTER TABLE run_clusters ADD COLUMN kept BIGINT;

CREATE TABLE refreshes (
    run_id VARCHAR PRIMARY KEY, base_run VARCHAR, clustering_id VARCHAR, pool BIGINT NOT NULL, added BIGINT NOT NULL, returned BIGINT NOT NULL,
    retired BIGINT NOT NULL, assigned BIGINT, since_fit BIGINT, share DOUBLE, distance_shift DOUBLE, distance_error DOUBLE, movement DOUBLE,
    loss_shift DOUBLE, unseen DOUBLE, thresholds JSON, advice VARCHAR NOT NULL, why VARCHAR, refitted BOOLEAN NOT NULL, decided_at TIMESTAMP NOT NULL
);
