-- Clusterings, and what runs chose from them and why.

CREATE TABLE clusterings (
    clustering_id VARCHAR PRIMARY KEY, space_id VARCHAR NOT NULL, run_id VARCHAR NOT NULL, parent VARCHAR, n_clusters INTEGER NOT NULL,
    config JSON NOT NULL, added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE clusterings IS 'partitions of the good rows of a space';
COMMENT ON COLUMN clusterings.clustering_id IS 'readable and unique';
COMMENT ON COLUMN clusterings.space_id IS 'the space';
COMMENT ON COLUMN clusterings.run_id IS 'run that made it';
COMMENT ON COLUMN clusterings.parent IS 'the clustering it was fitted anew from, if any';
COMMENT ON COLUMN clusterings.n_clusters IS 'number of clusters K';
COMMENT ON COLUMN clusterings.config IS 'settings of k-means, with its seed';
COMMENT ON COLUMN clusterings.added_at IS 'UTC';

CREATE TABLE clusters (
    clustering_id VARCHAR, cluster INTEGER, size BIGINT NOT NULL, inertia DOUBLE NOT NULL, PRIMARY KEY (clustering_id, cluster)
);
COMMENT ON TABLE clusters IS 'the clusters of a clustering, as of its newest rows';
COMMENT ON COLUMN clusters.clustering_id IS 'the clustering';
COMMENT ON COLUMN clusters.cluster IS 'number, from 0';
COMMENT ON COLUMN clusters.size IS 'rows in it';
COMMENT ON COLUMN clusters.inertia IS 'sum of squared distances of its rows to the centroid';

CREATE TABLE cluster_parts (
    clustering_id VARCHAR, part INTEGER, rows BIGINT NOT NULL, slots BIGINT NOT NULL, chunk_rows INTEGER NOT NULL, digest VARCHAR NOT NULL,
    PRIMARY KEY (clustering_id, part)
);
COMMENT ON TABLE cluster_parts IS 'the regrouped features: part 0 of the rows clustered first, one more for each refresh';
COMMENT ON COLUMN cluster_parts.clustering_id IS 'the clustering';
COMMENT ON COLUMN cluster_parts.part IS 'number, from 0';
COMMENT ON COLUMN cluster_parts.rows IS 'feature rows in it';
COMMENT ON COLUMN cluster_parts.slots IS 'rows of the array: every cluster begins at a chunk, so some stay empty';
COMMENT ON COLUMN cluster_parts.chunk_rows IS 'rows of a chunk file';
COMMENT ON COLUMN cluster_parts.digest IS 'blake2b-128 of the checksums of its chunks, in order';

CREATE TABLE assignments (clustering_id VARCHAR NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, cluster INTEGER NOT NULL, distance FLOAT NOT NULL);
COMMENT ON TABLE assignments IS 'the cluster of every row';
COMMENT ON COLUMN assignments.clustering_id IS 'the clustering';
COMMENT ON COLUMN assignments.segment IS 'the segment';
COMMENT ON COLUMN assignments.row IS 'row in the segment, from 0';
COMMENT ON COLUMN assignments.cluster IS 'its cluster';
COMMENT ON COLUMN assignments.distance IS 'Euclidean distance to the centroid';

CREATE TABLE run_clusters (
    run_id VARCHAR, cluster INTEGER, size BIGINT NOT NULL, budget BIGINT NOT NULL, selected BIGINT NOT NULL, residual DOUBLE, seconds DOUBLE NOT NULL,
    stats JSON NOT NULL, PRIMARY KEY (run_id, cluster)
);
COMMENT ON TABLE run_clusters IS 'clusters that a run has finished; methods without clusters record one cluster, 0';
COMMENT ON COLUMN run_clusters.run_id IS 'the run';
COMMENT ON COLUMN run_clusters.cluster IS 'the cluster';
COMMENT ON COLUMN run_clusters.size IS 'rows of the run''s pool in it';
COMMENT ON COLUMN run_clusters.budget IS 'examples it was given';
COMMENT ON COLUMN run_clusters.selected IS 'examples it chose';
COMMENT ON COLUMN run_clusters.residual IS '|b - A'' x| / |b| with the final weights; 1 explains nothing';
COMMENT ON COLUMN run_clusters.seconds IS 'time of the pursuit';
COMMENT ON COLUMN run_clusters.stats IS 'rounds, Gram columns computed and used, ...';

CREATE TABLE selections (
    run_id VARCHAR NOT NULL, example_id VARCHAR NOT NULL, cluster INTEGER NOT NULL, rank BIGINT NOT NULL, round INTEGER, correlation DOUBLE,
    residual_after DOUBLE, weight DOUBLE
);
COMMENT ON TABLE selections IS 'what runs chose';
COMMENT ON COLUMN selections.run_id IS 'the run';
COMMENT ON COLUMN selections.example_id IS 'the chosen example';
COMMENT ON COLUMN selections.cluster IS 'its cluster';
COMMENT ON COLUMN selections.rank IS 'order of choice within the cluster, from 0';
COMMENT ON COLUMN selections.round IS 'round of the pursuit';
COMMENT ON COLUMN selections.correlation IS 'correlation with the residual when it was chosen';
COMMENT ON COLUMN selections.residual_after IS '|residual| / |target| after it was chosen';
COMMENT ON COLUMN selections.weight IS 'weight of the final solve, not negative';

CREATE TABLE candidates (run_id VARCHAR NOT NULL, cluster INTEGER NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, margin FLOAT);
COMMENT ON TABLE candidates IS 'every row a run could choose from, so that it can say how far from the cut one was left';
COMMENT ON COLUMN candidates.run_id IS 'the run';
COMMENT ON COLUMN candidates.cluster IS 'its cluster';
COMMENT ON COLUMN candidates.segment IS 'the segment';
COMMENT ON COLUMN candidates.row IS 'row in the segment, from 0';
COMMENT ON COLUMN candidates.margin IS 'correlation with the final weighted residual: of the rows left, the largest would be chosen next';
