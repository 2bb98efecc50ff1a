-- What shares a run's budget is a group: a cluster, a stratum, or the whole pool. What a method ranks by is a score. Views keep the
-- names cluster and correlation beside these for one version. A primary key cannot be altered: the table is made again.

CREATE TABLE run_groups (
    run_id VARCHAR, group_id INTEGER, size BIGINT NOT NULL, budget BIGINT NOT NULL, selected BIGINT NOT NULL, residual DOUBLE, seconds DOUBLE NOT NULL,
    stats JSON NOT NULL, inertia DOUBLE, inputs VARCHAR, copied_from VARCHAR, kept BIGINT, PRIMARY KEY (run_id, group_id)
);
INSERT INTO run_groups BY NAME SELECT * RENAME (cluster AS group_id) FROM run_clusters;
DROP TABLE run_clusters;

ALTER TABLE selections RENAME COLUMN cluster TO group_id;
ALTER TABLE selections RENAME COLUMN correlation TO score;

ALTER TABLE candidates RENAME COLUMN cluster TO group_id;
