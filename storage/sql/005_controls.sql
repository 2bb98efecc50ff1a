-- Controls: other ways to select, selecting again from stored features, and how well selections stand for their pools.

ALTER TABLE runs ADD COLUMN reselects VARCHAR;
COMMENT ON COLUMN runs.reselects IS 'run whose pool and features this one selects from again; null for a run of its own sources';

COMMENT ON TABLE run_clusters IS 'the groups that share a run''s budget: clusters, strata (method stratified), or the whole pool as group 0';
COMMENT ON COLUMN selections.cluster IS 'its group: the cluster, the stratum, or 0';
COMMENT ON COLUMN selections.correlation IS 'score when it was chosen: the pursuit''s correlation with the residual, or what its method ranks by (docs/controls.md)';
COMMENT ON COLUMN selections.weight IS 'weight of the final solve, not negative; null where the method gives none: all count alike';
COMMENT ON COLUMN candidates.cluster IS 'its group: the cluster, the stratum, or 0';
COMMENT ON COLUMN candidates.margin IS 'score in the end (the pursuit: correlation with the final weighted residual): of the rows left, the largest would be chosen next';

CREATE TABLE diagnostics (
    run_id VARCHAR NOT NULL, method VARCHAR NOT NULL, fraction DOUBLE NOT NULL, seed BIGINT NOT NULL, dimensions VARCHAR NOT NULL, cluster INTEGER,
    size BIGINT NOT NULL, selected BIGINT NOT NULL, error_plain DOUBLE, error_weighted DOUBLE, error_fitted DOUBLE, sources_reached DOUBLE,
    clusters_reached DOUBLE, chosen UINTEGER[], seconds DOUBLE NOT NULL, measured_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE diagnostics IS 'how well selections stand for the pool: one row for the pool and one a cluster, of every run and of every unit of `tagcos diagnose`';
COMMENT ON COLUMN diagnostics.run_id IS 'the run that was measured (seen), or whose pool and features were selected from (held out)';
COMMENT ON COLUMN diagnostics.method IS 'selection method';
COMMENT ON COLUMN diagnostics.fraction IS 'share of the pool that was selected';
COMMENT ON COLUMN diagnostics.seed IS 'seed of the draws and of the clustering';
COMMENT ON COLUMN diagnostics.dimensions IS 'what errors were measured on: seen (all dimensions, those the selection was made by) or held out (an eighth that it did not see)';
COMMENT ON COLUMN diagnostics.cluster IS 'cluster of the reference clustering; null for the whole pool';
COMMENT ON COLUMN diagnostics.size IS 'rows of the pool in it';
COMMENT ON COLUMN diagnostics.selected IS 'of them selected';
COMMENT ON COLUMN diagnostics.error_plain IS '|mean of the chosen - mean| / |mean| of the features, every chosen row counting alike; 1 explains nothing';
COMMENT ON COLUMN diagnostics.error_weighted IS 'the same with the method''s weights, where it has none equal to counting alike over the pool';
COMMENT ON COLUMN diagnostics.error_fitted IS 'the same with non-negative weights fitted to the pool''s mean on the dimensions seen; null where not computed';
COMMENT ON COLUMN diagnostics.sources_reached IS 'share of the datasets with at least one example chosen';
COMMENT ON COLUMN diagnostics.clusters_reached IS 'share of the clusters with at least one example chosen';
COMMENT ON COLUMN diagnostics.chosen IS 'held out: positions of the chosen in the pool, in order of segment and row; for the overlap of seeds';
COMMENT ON COLUMN diagnostics.seconds IS 'time of selecting (held out) or of measuring (seen)';
COMMENT ON COLUMN diagnostics.measured_at IS 'UTC';
