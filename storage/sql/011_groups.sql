-- What shares a run's budget is a group: a cluster, a stratum, or the whole pool. What a method ranks by is a score. Views keep the
-- names cluster and correlation beside these for one version. A primary key cannot be altered: the table is made again.

CREATE TABLE run_groups (
    run_id VARCHAR, group_id INTEGER, size BIGINT NOT NULL, budget BIGINT NOT NULL, selected BIGINT NOT NULL, residual DOUBLE, seconds DOUBLE NOT NULL,
    stats JSON NOT NULL, inertia DOUBLE, inputs VARCHAR, copied_from VARCHAR, kept BIGINT, PRIMARY KEY (run_id, group_id)
);
INSERT INTO run_groups BY NAME SELECT * RENAME (cluster AS group_id) FROM run_clusters;
DROP TABLE run_clusters;
COMMENT ON TABLE run_groups IS 'the groups that share a run''s budget and are finished: clusters, strata (method stratified), or the whole pool as group 0';
COMMENT ON COLUMN run_groups.run_id IS 'the run';
COMMENT ON COLUMN run_groups.group_id IS 'number: of the cluster, of the stratum, or 0';
COMMENT ON COLUMN run_groups.size IS 'rows of the run''s pool in it';
COMMENT ON COLUMN run_groups.budget IS 'examples it was given';
COMMENT ON COLUMN run_groups.selected IS 'examples it chose';
COMMENT ON COLUMN run_groups.residual IS '|b - A'' x| / |b| with the final weights; 1 explains nothing';
COMMENT ON COLUMN run_groups.seconds IS 'time of the choice';
COMMENT ON COLUMN run_groups.stats IS 'rounds, Gram columns computed and used, ...';
COMMENT ON COLUMN run_groups.inertia IS 'of clusters: sum of squared distances of the run''s rows in it to their mean';
COMMENT ON COLUMN run_groups.inputs IS 'hash of all that the choice depends on: members, budget, method, settings; equal inputs choose the same';
COMMENT ON COLUMN run_groups.copied_from IS 'earlier run with equal inputs, whose choice was copied and whose candidates count here, too';
COMMENT ON COLUMN run_groups.kept IS 'earlier choices that were kept only because of the setting sticky';

ALTER TABLE selections RENAME COLUMN cluster TO group_id;
ALTER TABLE selections RENAME COLUMN correlation TO score;
COMMENT ON COLUMN selections.group_id IS 'its group: the cluster, the stratum, or 0';
COMMENT ON COLUMN selections.rank IS 'order of choice within the group, from 0';
COMMENT ON COLUMN selections.score IS 'what its method ranked it by when it was chosen: the pursuit''s correlation with the residual, or another number (docs/controls.md)';

ALTER TABLE candidates RENAME COLUMN cluster TO group_id;
COMMENT ON COLUMN candidates.group_id IS 'its group: the cluster, the stratum, or 0';
