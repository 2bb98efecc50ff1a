-- What the columns of the views hold; columns of macros are those of the view of the same kind.

COMMENT ON COLUMN latest_run.run_id IS 'the run';
COMMENT ON COLUMN latest_run.started_at IS 'first attempt, UTC';
COMMENT ON COLUMN latest_run.finished_at IS 'when it became complete, UTC';
COMMENT ON COLUMN latest_run.space_id IS 'feature space it worked in';
COMMENT ON COLUMN latest_run.clustering_id IS 'clustering it selected from; null where its method needs none';

COMMENT ON COLUMN latest_selection.run_id IS 'the run';
COMMENT ON COLUMN latest_selection.example_id IS 'the example';
COMMENT ON COLUMN latest_selection.dataset IS 'dataset of its first occurrence';
COMMENT ON COLUMN latest_selection.group_id IS 'its group: the cluster, the stratum, or 0';
COMMENT ON COLUMN latest_selection.rank IS 'order of choice in its group, from 0';
COMMENT ON COLUMN latest_selection.round IS 'round of the pursuit that chose it; null where there are none, or an earlier choice was kept';
COMMENT ON COLUMN latest_selection.score IS 'score when it was chosen (docs/controls.md)';
COMMENT ON COLUMN latest_selection.residual_after IS 'residual of its group after the choice, as a share of the target''s length';
COMMENT ON COLUMN latest_selection.weight IS 'weight within its group, not negative; 1 where the method gives none';
COMMENT ON COLUMN latest_selection.share IS 'its weight in the mean of the whole selection; where the method gives weights, that of the mean gradient';
COMMENT ON COLUMN latest_selection.tokens IS 'tokens after truncation';
COMMENT ON COLUMN latest_selection.target_tokens IS 'tokens that are trained on';
COMMENT ON COLUMN latest_selection.loss IS 'mean cross-entropy over the target tokens, nats';
COMMENT ON COLUMN latest_selection.turns IS 'messages in the conversation';
COMMENT ON COLUMN latest_selection.chars IS 'characters of all messages';
COMMENT ON COLUMN latest_selection.segment IS 'segment that holds it';
COMMENT ON COLUMN latest_selection.row IS 'row in the segment, from 0';
COMMENT ON COLUMN latest_selection.cluster IS 'earlier name of group_id';
COMMENT ON COLUMN latest_selection.correlation IS 'earlier name of score';

COMMENT ON COLUMN selection_by_dataset.dataset IS 'the dataset; null where the input names none';
COMMENT ON COLUMN selection_by_dataset.pool IS 'examples in the pool';
COMMENT ON COLUMN selection_by_dataset.selected IS 'of them selected';
COMMENT ON COLUMN selection_by_dataset.share_of_pool IS 'share of the pool, from 0 to 1';
COMMENT ON COLUMN selection_by_dataset.share_of_selection IS 'share of the selection, from 0 to 1';
COMMENT ON COLUMN selection_by_dataset.weight IS 'sum of the weights of those selected';
COMMENT ON COLUMN selection_by_dataset.target_tokens IS 'target tokens of those selected';

COMMENT ON COLUMN selection_by_source.dataset IS 'the dataset; null where the input names none';
COMMENT ON COLUMN selection_by_source.pool IS 'examples in the pool';
COMMENT ON COLUMN selection_by_source.selected IS 'of them selected';
COMMENT ON COLUMN selection_by_source.share_of_pool IS 'share of the pool, from 0 to 1';
COMMENT ON COLUMN selection_by_source.share_of_selection IS 'share of the selection, from 0 to 1';
COMMENT ON COLUMN selection_by_source.weight IS 'sum of the weights of those selected';
COMMENT ON COLUMN selection_by_source.target_tokens IS 'target tokens of those selected';

COMMENT ON COLUMN coverage.group_id IS 'the group: cluster, stratum, or 0';
COMMENT ON COLUMN coverage.size IS 'rows of the pool in it';
COMMENT ON COLUMN coverage.budget IS 'rows it was to choose';
COMMENT ON COLUMN coverage.selected IS 'rows it chose';
COMMENT ON COLUMN coverage.share IS 'selected / size';
COMMENT ON COLUMN coverage.residual IS 'length of what the choice leaves of the group''s mean feature, as a share of it; 1 explains nothing; null where the method follows none';
COMMENT ON COLUMN coverage.mean_squared_distance IS 'mean squared distance of its rows to their mean; null of groups that are no clusters';
COMMENT ON COLUMN coverage.cluster IS 'earlier name of group_id';

COMMENT ON COLUMN comparison.method IS 'selection method';
COMMENT ON COLUMN comparison.fraction IS 'share of the pool that was selected';
COMMENT ON COLUMN comparison.seeds IS 'seeds measured';
COMMENT ON COLUMN comparison.selected IS 'examples selected, mean over seeds';
COMMENT ON COLUMN comparison.error_plain IS 'error of the mean feature, every chosen example counting equally; mean over seeds';
COMMENT ON COLUMN comparison.error_weighted IS 'the same with the method''s weights';
COMMENT ON COLUMN comparison.error_fitted IS 'the same with non-negative weights fitted on the other dimensions';
COMMENT ON COLUMN comparison.sd_fitted IS 'standard deviation of error_fitted over seeds; null of one seed';
COMMENT ON COLUMN comparison.cluster_plain IS 'mean over clusters of error_plain';
COMMENT ON COLUMN comparison.cluster_weighted IS 'mean over clusters of error_weighted';
COMMENT ON COLUMN comparison.sources_reached IS 'share of the datasets with an example chosen';
COMMENT ON COLUMN comparison.clusters_reached IS 'share of the clusters with an example chosen';
COMMENT ON COLUMN comparison.jaccard IS 'mean overlap of two seeds'' selections: shared over all that one of the two chose; null of one seed';
COMMENT ON COLUMN comparison.seconds IS 'seconds to select, mean over seeds';

COMMENT ON COLUMN evaluated.regime IS 'steps: equally many optimizer steps; epochs: equally many passes over the selection';
COMMENT ON COLUMN evaluated.fraction IS 'share of the pool that was selected';
COMMENT ON COLUMN evaluated.method IS 'selection method, full (the whole pool) or base (not trained)';
COMMENT ON COLUMN evaluated.gradient IS 'gradient variant of the features selected by; empty where the method reads none';
COMMENT ON COLUMN evaluated.setting IS 'setting, as NAME=VALUE, in which the selection differs from the run''s own; empty for none';
COMMENT ON COLUMN evaluated.weighted IS 'losses were weighted by the selection''s weights';
COMMENT ON COLUMN evaluated.measure IS 'loss, source_loss, or a task';
COMMENT ON COLUMN evaluated.part IS 'null: all parts together';
COMMENT ON COLUMN evaluated.seeds IS 'seeds measured';
COMMENT ON COLUMN evaluated.value IS 'mean over seeds; of loss in nats, of tasks a share from 0 to 1';
COMMENT ON COLUMN evaluated.se IS 'standard error of value over seeds; null of one seed';
COMMENT ON COLUMN evaluated.vs_random IS 'mean difference from random selection with the same seed; of loss, below 0 is better';
COMMENT ON COLUMN evaluated.vs_random_se IS 'standard error of vs_random';
COMMENT ON COLUMN evaluated.pairs IS 'seeds that vs_random is a mean of';
COMMENT ON COLUMN evaluated.median_vs_random IS 'of source_loss: median over datasets of the difference from random';
COMMENT ON COLUMN evaluated.median_vs_random_se IS 'standard error of median_vs_random over seeds';
COMMENT ON COLUMN evaluated.sources_ahead IS 'of source_loss: datasets whose loss is lower than under random selection';
COMMENT ON COLUMN evaluated.sources IS 'of source_loss: datasets compared';
COMMENT ON COLUMN evaluated.examples IS 'examples trained on, mean over seeds';
COMMENT ON COLUMN evaluated.steps IS 'optimizer steps, mean over seeds';
COMMENT ON COLUMN evaluated.passes IS 'times that each example was seen, mean over seeds';
COMMENT ON COLUMN evaluated.train_seconds IS 'seconds to train, mean over seeds';

COMMENT ON COLUMN example_history.example_id IS 'the example';
COMMENT ON COLUMN example_history.dataset IS 'dataset of its first occurrence';
COMMENT ON COLUMN example_history.first_run IS 'run that met it first';
COMMENT ON COLUMN example_history.last_run IS 'last run, in order of completion, that had it in its pool';
COMMENT ON COLUMN example_history.runs IS 'runs that had it in their pool';

COMMENT ON COLUMN retired.example_id IS 'the example';
COMMENT ON COLUMN retired.dataset IS 'dataset of its first occurrence';
COMMENT ON COLUMN retired.first_run IS 'run that met it first';
COMMENT ON COLUMN retired.last_run IS 'last run, in order of completion, that had it in its pool';
COMMENT ON COLUMN retired.runs IS 'runs that had it in their pool';

COMMENT ON COLUMN drift.run_id IS 'the run';
COMMENT ON COLUMN drift.started_at IS 'first attempt of the run, UTC';
COMMENT ON COLUMN drift.pool IS 'examples of the pool with a feature';
COMMENT ON COLUMN drift.added IS 'examples that no run had met before the earlier one began';
COMMENT ON COLUMN drift.returned IS 'examples met before that the earlier run''s pool lacked';
COMMENT ON COLUMN drift.retired IS 'examples of the earlier run''s pool that are gone from the sources';
COMMENT ON COLUMN drift.share IS 'share of the pool that joined after the clusters were fitted';
COMMENT ON COLUMN drift.distance_shift IS 'how much further new rows are from their centroids, in standard deviations';
COMMENT ON COLUMN drift.distance_error IS 'standard error of distance_shift';
COMMENT ON COLUMN drift.movement IS 'how far the cluster means moved, in root mean square distances of their rows';
COMMENT ON COLUMN drift.loss_shift IS 'how much higher the loss of rows unseen by the warm-up is, in standard deviations of those it saw';
COMMENT ON COLUMN drift.unseen IS 'share of the pool that was first met after the warm-up';
COMMENT ON COLUMN drift.advice IS 'keep, cluster anew, warm up anew, or both';
COMMENT ON COLUMN drift.why IS 'the limits that were passed; null where none was';
COMMENT ON COLUMN drift.refitted IS 'a new clustering was made';
COMMENT ON COLUMN drift.clustering_id IS 'clustering that the pool was compared with; null where there was none';

COMMENT ON COLUMN churn.run_id IS 'the run';
COMMENT ON COLUMN churn.base_run IS 'the run before it in its feature space, by the same method';
COMMENT ON COLUMN churn.earlier IS 'examples that the run before selected';
COMMENT ON COLUMN churn.left_it IS 'of them no longer selected';
COMMENT ON COLUMN churn.kept_by_sticky IS 'selected only because the setting sticky kept them';
COMMENT ON COLUMN churn.churn IS 'left_it / earlier';
COMMENT ON COLUMN churn.churn_without_sticky IS 'what churn would have been without the setting sticky';

COMMENT ON COLUMN duplicates.example_id IS 'the example';
COMMENT ON COLUMN duplicates.occurrences IS 'input rows that are this example';
COMMENT ON COLUMN duplicates.sources IS 'sources with such a row';
COMMENT ON COLUMN duplicates.source_names IS 'these sources, sorted';
COMMENT ON COLUMN duplicates.datasets IS 'datasets that the rows name, sorted';

COMMENT ON COLUMN rejects_by_reason.stage IS 'ingest, near-duplicates or gradients';
COMMENT ON COLUMN rejects_by_reason.reason IS 'a short fixed word';
COMMENT ON COLUMN rejects_by_reason.source IS 'source of the rejected rows; null of examples that were rejected later';
COMMENT ON COLUMN rejects_by_reason.rows IS 'rows or examples rejected';
COMMENT ON COLUMN rejects_by_reason.for_example IS 'what exactly was wrong with one of them';
COMMENT ON COLUMN rejects_by_reason.snippet IS 'the beginning of the first of them';

COMMENT ON COLUMN near_duplicates.example_id IS 'the example left out';
COMMENT ON COLUMN near_duplicates.dataset IS 'dataset of its first occurrence';
COMMENT ON COLUMN near_duplicates.like_id IS 'earlier example that it nearly repeats';
COMMENT ON COLUMN near_duplicates.likeness IS 'estimated Jaccard likeness of their sets of three-word runs, from 0 to 1';
COMMENT ON COLUMN near_duplicates.kept_id IS 'example that stays in the pool for both';
COMMENT ON COLUMN near_duplicates.kept_dataset IS 'dataset of the example that stays';

COMMENT ON COLUMN sources.source IS 'name of the source';
COMMENT ON COLUMN sources.files IS 'file versions read';
COMMENT ON COLUMN sources.bytes IS 'bytes of these files';
COMMENT ON COLUMN sources.rows IS 'input rows read';
COMMENT ON COLUMN sources.rejected IS 'of them rejected';
COMMENT ON COLUMN sources.complete IS 'every file was read to its end';

COMMENT ON COLUMN trend.run_id IS 'the run';
COMMENT ON COLUMN trend.finished_at IS 'when it became complete, UTC';
COMMENT ON COLUMN trend.method IS 'selection method';
COMMENT ON COLUMN trend.pool IS 'examples of the pool with a feature';
COMMENT ON COLUMN trend.selected IS 'examples selected';
COMMENT ON COLUMN trend.fraction IS 'selected / pool';
COMMENT ON COLUMN trend.base_run IS 'run that it is compared with; null of a first run';
COMMENT ON COLUMN trend.added IS 'new examples since the run compared with';
COMMENT ON COLUMN trend.returned IS 'examples back since the run compared with';
COMMENT ON COLUMN trend.retired IS 'examples gone since the run compared with';
COMMENT ON COLUMN trend.churn IS 'share of the earlier selection that is no longer selected';
COMMENT ON COLUMN trend.joined_share IS 'share of the pool that joined after the clusters were fitted';
COMMENT ON COLUMN trend.movement IS 'how far the cluster means moved (see drift)';
COMMENT ON COLUMN trend.loss_shift IS 'how much higher the loss of rows unseen by the warm-up is (see drift)';
COMMENT ON COLUMN trend.advice IS 'keep, cluster anew, warm up anew, or both';
COMMENT ON COLUMN trend.refitted IS 'a new clustering was made';
COMMENT ON COLUMN trend.error_plain IS 'error of the pool''s mean feature, every chosen example counting equally; 1 explains nothing';
COMMENT ON COLUMN trend.error_weighted IS 'the same with the method''s weights';
COMMENT ON COLUMN trend.seconds IS 'wall time of all stages and attempts';
COMMENT ON COLUMN trend.tokens IS 'tokens through the model, warm-up included';
COMMENT ON COLUMN trend.peak_bytes IS 'largest peak memory of a stage, bytes';

COMMENT ON COLUMN run_clusters.run_id IS 'the run';
COMMENT ON COLUMN run_clusters.cluster IS 'number: of the cluster, of the stratum, or 0';
COMMENT ON COLUMN run_clusters.size IS 'rows of the run''s pool in it';
COMMENT ON COLUMN run_clusters.budget IS 'examples it was given';
COMMENT ON COLUMN run_clusters.selected IS 'examples it chose';
COMMENT ON COLUMN run_clusters.residual IS '|b - A'' x| / |b| with the final weights; 1 explains nothing';
COMMENT ON COLUMN run_clusters.seconds IS 'time of the choice';
COMMENT ON COLUMN run_clusters.stats IS 'rounds, Gram columns computed and used, ...';
COMMENT ON COLUMN run_clusters.inertia IS 'of clusters: sum of squared distances of the run''s rows in it to their mean';
COMMENT ON COLUMN run_clusters.inputs IS 'hash of all that the choice depends on: members, budget, method, settings; equal inputs choose the same';
COMMENT ON COLUMN run_clusters.copied_from IS 'earlier run with equal inputs, whose choice was copied and whose candidates count here, too';
COMMENT ON COLUMN run_clusters.kept IS 'earlier choices that were kept only because of the setting sticky';
