-- A pool that grows: clusterings are found again, runs say what changed since the run before, and how far the data drifted.

ALTER TABLE clusterings ADD COLUMN recipe VARCHAR;
COMMENT ON COLUMN clusterings.recipe IS 'hash of space and settings, without the pool: a grown pool finds its clustering by it';
COMMENT ON TABLE clusters IS 'the clusters of a clustering, as fitted; what they are for a run is in run_clusters';
COMMENT ON COLUMN clusters.size IS 'rows it was fitted with';
COMMENT ON COLUMN clusters.inertia IS 'sum of squared distances of these rows to their mean';

ALTER TABLE run_clusters ADD COLUMN inertia DOUBLE;
ALTER TABLE run_clusters ADD COLUMN inputs VARCHAR;
ALTER TABLE run_clusters ADD COLUMN copied_from VARCHAR;
ALTER TABLE run_clusters ADD COLUMN kept BIGINT;
COMMENT ON COLUMN run_clusters.inertia IS 'sum of squared distances of the run''s rows in it to their mean';
COMMENT ON COLUMN run_clusters.inputs IS 'hash of all that the choice depends on: members, budget, settings; equal inputs choose the same';
COMMENT ON COLUMN run_clusters.copied_from IS 'earlier run with equal inputs, whose choice was copied and whose candidates count here, too';
COMMENT ON COLUMN run_clusters.kept IS 'earlier choices that keep their place only by the setting sticky';

CREATE TABLE refreshes (
    run_id VARCHAR PRIMARY KEY, base_run VARCHAR, clustering_id VARCHAR, pool BIGINT NOT NULL, added BIGINT NOT NULL, returned BIGINT NOT NULL,
    retired BIGINT NOT NULL, assigned BIGINT, since_fit BIGINT, share DOUBLE, distance_shift DOUBLE, distance_error DOUBLE, movement DOUBLE,
    loss_shift DOUBLE, unseen DOUBLE, thresholds JSON, advice VARCHAR NOT NULL, why VARCHAR, refitted BOOLEAN NOT NULL, decided_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE refreshes IS 'runs on a pool that was known, at least in part: what came and went, and whether the clusters still fit';
COMMENT ON COLUMN refreshes.run_id IS 'the run';
COMMENT ON COLUMN refreshes.base_run IS 'the complete run before it, whose selection it is compared with';
COMMENT ON COLUMN refreshes.clustering_id IS 'the earlier clustering that was looked at; null where there was none';
COMMENT ON COLUMN refreshes.pool IS 'examples with a feature';
COMMENT ON COLUMN refreshes.added IS 'of them, first met after the base run began';
COMMENT ON COLUMN refreshes.returned IS 'of them, not in the base run''s pool, but known before';
COMMENT ON COLUMN refreshes.retired IS 'examples of the base run''s pool that are gone from the sources';
COMMENT ON COLUMN refreshes.assigned IS 'rows that joined the earlier clustering';
COMMENT ON COLUMN refreshes.since_fit IS 'rows of the pool that joined it after it was fitted, in this and all earlier runs';
COMMENT ON COLUMN refreshes.share IS 'since_fit as a share of the pool';
COMMENT ON COLUMN refreshes.distance_shift IS 'how much further from their centroids rows since the fit are, in standard deviations of those fitted';
COMMENT ON COLUMN refreshes.distance_error IS 'standard error of distance_shift';
COMMENT ON COLUMN refreshes.movement IS 'how far the means moved since the fit, in root mean square distances of the rows to their mean';
COMMENT ON COLUMN refreshes.loss_shift IS 'how much higher the loss of rows is that the warm-up could not see, in standard deviations of those it could';
COMMENT ON COLUMN refreshes.unseen IS 'share of the pool that was first met after the warm-up';
COMMENT ON COLUMN refreshes.thresholds IS 'the limits these numbers were held against';
COMMENT ON COLUMN refreshes.advice IS 'keep, cluster anew, warm up anew, or both';
COMMENT ON COLUMN refreshes.why IS 'the limits that were passed';
COMMENT ON COLUMN refreshes.refitted IS 'a new clustering was made';
COMMENT ON COLUMN refreshes.decided_at IS 'UTC; a resumed run keeps the decision';
