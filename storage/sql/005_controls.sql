-- Controls: other ways to select, selecting again from stored features, and how well selections stand for their pools.

ALTER TABLE runs ADD COLUMN reselects VARCHAR;

CREATE TABLE diagnostics (
    run_id VARCHAR NOT NULL, method VARCHAR NOT NULL, fraction DOUBLE NOT NULL, seed BIGINT NOT NULL, dimensions VARCHAR NOT NULL, cluster INTEGER,
    size BIGINT NOT NULL, selected BIGINT NOT NULL, error_plain DOUBLE, error_weighted DOUBLE, error_fitted DOUBLE, sources_reached DOUBLE,
    clusters_reached DOUBLE, chosen UINTEGER[], seconds DOUBLE NOT NULL, measured_at TIMESTAMP NOT NULL
);
