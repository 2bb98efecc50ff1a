-- Clusterings, and what runs chose from them and why.

CREATE TABLE clusterings (
    clustering_id VARCHAR PRIMARY KEY, space_id VARCHAR NOT NULL, run_id VARCHAR NOT NULL, parent VARCHAR, n_clusters INTEGER NOT NULL,
    config JSON NOT NULL, added_at TIMESTAMP NOT NULL
);

CREATE TABLE clusters (
    clustering_id VARCHAR, cluster INTEGER, size BIGINT NOT NULL, inertia DOUBLE NOT NULL, PRIMARY KEY (clustering_id, cluster)
);

CREATE TABLE cluster_parts (
    clustering_id VARCHAR, part INTEGER, rows BIGINT NOT NULL, slots BIGINT NOT NULL, chunk_rows INTEGER NOT NULL, digest VARCHAR NOT NULL,
    PRIMARY KEY (clustering_id, part)
);

CREATE TABLE assignments (clustering_id VARCHAR NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, cluster INTEGER NOT NULL, distance FLOAT NOT NULL);

CREATE TABLE run_clusters (
    run_id VARCHAR, cluster INTEGER, size BIGINT NOT NULL, budget BIGINT NOT NULL, selected BIGINT NOT NULL, residual DOUBLE, seconds DOUBLE NOT NULL,
    stats JSON NOT NULL, PRIMARY KEY (run_id, cluster)
);

CREATE TABLE selections (
    run_id VARCHAR NOT NULL, example_id VARCHAR NOT NULL, cluster INTEGER NOT NULL, rank BIGINT NOT NULL, round INTEGER, correlation DOUBLE,
    residual_after DOUBLE, weight DOUBLE
);

CREATE TABLE candidates (run_id VARCHAR NOT NULL, cluster INTEGER NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, margin FLOAT);
