-- Views and macros for common questions. Each has an example in docs/store.md that a test runs. Replaced whenever this text changes.

-- A name refers to the run that became complete under it, or was promoted to it, last.
CREATE OR REPLACE VIEW named_runs AS
    SELECT name, run_id, finished_at AS since, false AS promoted FROM runs WHERE status = 'complete' AND name IS NOT NULL
    UNION ALL SELECT p.name, p.run_id, p.promoted_at, true FROM promotions p JOIN runs r USING (run_id) WHERE r.status = 'complete';
COMMENT ON VIEW named_runs IS 'the complete runs that a name has referred to, by completion or promotion';

CREATE OR REPLACE VIEW names AS
    SELECT DISTINCT ON (name) name, run_id, since, promoted FROM named_runs ORDER BY name, since DESC, run_id DESC;
COMMENT ON VIEW names IS 'the run that each name refers to';

CREATE OR REPLACE MACRO latest_of(run_name) AS (SELECT n.run_id FROM names n WHERE n.name = run_name);

CREATE OR REPLACE VIEW latest_run AS
    SELECT run_id, started_at, finished_at, space_id, clustering_id FROM runs WHERE run_id = latest_of('main');
COMMENT ON VIEW latest_run IS 'the run that the name main refers to: the newest complete one of this name';

CREATE OR REPLACE MACRO pool_of(run) AS TABLE
    SELECT e.example_id, e.segment, e.row, e.dataset, e.turns, e.chars FROM examples e
    WHERE e.example_id IN (SELECT o.example_id FROM occurrences o WHERE o.file_id IN (SELECT f.file_id FROM run_files f WHERE f.run_id = run))
        AND e.segment NOT IN (SELECT h.segment FROM segments h WHERE h.heldout)
        AND e.example_id NOT IN (SELECT x.example_id FROM rejects x WHERE x.run_id = run AND x.stage = 'near-duplicates')
        AND e.example_id NOT IN (SELECT g.example_id FROM forgotten g)
        AND e.example_id NOT IN (SELECT t.example_id FROM target_repeats t JOIN runs g USING (target_id) WHERE g.run_id = run);

CREATE OR REPLACE MACRO heldout_of(run) AS TABLE
    SELECT e.example_id, e.segment, e.row, e.dataset, e.turns, e.chars FROM examples e JOIN segments s USING (segment)
    WHERE s.heldout AND e.example_id IN (SELECT o.example_id FROM occurrences o WHERE o.file_id IN (SELECT f.file_id FROM run_files f WHERE f.run_id = run))
        AND e.example_id NOT IN (SELECT g.example_id FROM forgotten g);

CREATE OR REPLACE MACRO selection_of(run) AS TABLE
    SELECT s.run_id, s.example_id, e.dataset, s.group_id, s.rank, s.round, s.score, s.residual_after, coalesce(s.weight, 1) AS weight,
        CASE WHEN s.weight IS NULL THEN 1 / (SELECT sum(n.selected) FROM run_groups n WHERE n.run_id = run)
            WHEN k.target_share IS NOT NULL THEN s.weight * k.target_share
            ELSE s.weight * k.size / (SELECT sum(n.size) FROM run_groups n WHERE n.run_id = run) END AS share,
        r.tokens, r.target_tokens, r.loss, e.turns, e.chars, e.segment, e.row, s.group_id AS cluster, s.score AS correlation
    FROM selections s JOIN runs USING (run_id) JOIN examples e USING (example_id)
    LEFT JOIN run_groups k ON k.run_id = s.run_id AND k.group_id = s.group_id
    LEFT JOIN feature_rows r ON r.space_id = runs.space_id AND r.segment = e.segment AND r.row = e.row
    WHERE s.run_id = run;

-- A group whose choice was copied from an earlier run shares that run's candidates.
CREATE OR REPLACE MACRO candidate_rows_of(run) AS TABLE
    SELECT k.run_id, c.group_id, c.segment, c.row, c.margin, c.representative, c.cosine FROM run_groups k
    JOIN candidates c ON c.run_id = coalesce(k.copied_from, k.run_id) AND c.group_id = k.group_id WHERE k.run_id = run;

CREATE OR REPLACE MACRO candidates_of(run) AS TABLE
    SELECT c.run_id, c.group_id, c.segment, c.row, c.margin, e.example_id, e.dataset, s.example_id IS NOT NULL AS chosen, r.tokens, r.target_tokens,
        r.loss, c.group_id AS cluster
    FROM candidate_rows_of(run) c JOIN examples e ON e.segment = c.segment AND e.row = c.row
    LEFT JOIN selections s ON s.run_id = c.run_id AND s.example_id = e.example_id
    LEFT JOIN feature_rows r ON r.space_id = (SELECT n.space_id FROM runs n WHERE n.run_id = run) AND r.segment = c.segment AND r.row = c.row;

CREATE OR REPLACE VIEW latest_selection AS FROM selection_of((SELECT run_id FROM latest_run));
COMMENT ON VIEW latest_selection IS 'what latest_run chose, one row an example';

CREATE OR REPLACE MACRO latest_selection_of(run_name) AS TABLE FROM selection_of(latest_of(run_name));

CREATE OR REPLACE MACRO by_dataset(run) AS TABLE
    WITH pool AS (SELECT dataset, count(*) AS pool FROM pool_of(run) GROUP BY dataset),
        chosen AS (SELECT dataset, count(*) AS selected, sum(weight) AS weight, sum(target_tokens) AS target_tokens FROM selection_of(run) GROUP BY dataset)
    SELECT p.dataset, p.pool, coalesce(c.selected, 0) AS selected, p.pool / sum(p.pool) OVER () AS share_of_pool,
        coalesce(c.selected, 0) / nullif(sum(c.selected) OVER (), 0) AS share_of_selection, coalesce(c.weight, 0) AS weight,
        coalesce(c.target_tokens, 0)::BIGINT AS target_tokens
    FROM pool p LEFT JOIN chosen c ON c.dataset IS NOT DISTINCT FROM p.dataset;

CREATE OR REPLACE VIEW selection_by_dataset AS FROM by_dataset((SELECT run_id FROM latest_run));
COMMENT ON VIEW selection_by_dataset IS 'pool and selection of the newest complete run by dataset';

-- Names of earlier versions, kept for one version: by_source, selection_by_source, run_clusters, and the columns cluster, cluster_size,
-- cluster_budget, cluster_a, cluster_b and correlation of what follows and precedes.
CREATE OR REPLACE MACRO by_source(run) AS TABLE FROM by_dataset(run);

CREATE OR REPLACE VIEW selection_by_source AS FROM selection_by_dataset;
COMMENT ON VIEW selection_by_source IS 'earlier name of selection_by_dataset';

CREATE OR REPLACE VIEW run_clusters AS SELECT * RENAME (group_id AS cluster) FROM run_groups;
COMMENT ON VIEW run_clusters IS 'earlier name of the table run_groups';

-- What decided, in words of the method: the score when it was chosen, or that of one left.
CREATE OR REPLACE MACRO score_in_words(method_name, chosen, score) AS (
    SELECT CASE WHEN score IS NOT NULL THEN format(CASE WHEN chosen THEN m.words_chosen ELSE m.words_left END, score * m.scale)
        WHEN chosen THEN m.words_unscored END
    FROM methods m WHERE m.method = method_name);

CREATE OR REPLACE MACRO stands_in_words(number, datasets) AS CASE
    WHEN number = 0 THEN 'stands for no row: an equal example was chosen earlier'
    WHEN number = 1 THEN 'stands for itself only'
    ELSE format('stands for {} rows of its group: {}', number, datasets) END;

-- An id may be given by its first digits. `places_to_cut`: 1 means it would have been chosen next.
CREATE OR REPLACE MACRO why(id, run := NULL) AS TABLE
    WITH asked AS (
            SELECT a.run_id, (SELECT r.method FROM runs r WHERE r.run_id = a.run_id) AS method
            FROM (SELECT coalesce(run, (SELECT run_id FROM latest_run)) AS run_id) a
        ),
        wanted AS (SELECT * FROM examples WHERE starts_with(example_id, lower(id))),
        mine AS (
            SELECT w.example_id, c.group_id, c.margin, c.representative, c.cosine FROM wanted w
            JOIN candidate_rows_of((SELECT run_id FROM asked)) c ON c.segment = w.segment AND c.row = w.row
        ),
        unchosen AS (
            SELECT c.group_id, e.example_id, c.margin,
                row_number() OVER (PARTITION BY c.group_id ORDER BY c.margin DESC, c.segment, c.row) AS place,
                max(c.margin) OVER (PARTITION BY c.group_id) AS best
            FROM candidate_rows_of((SELECT run_id FROM asked)) c JOIN examples e ON e.segment = c.segment AND e.row = c.row
            WHERE c.group_id IN (SELECT group_id FROM mine)
                AND e.example_id NOT IN (SELECT example_id FROM selections WHERE run_id = (SELECT run_id FROM asked))
        ),
        represented AS (
            SELECT m.example_id, e.dataset, count(*) AS n FROM mine m
            JOIN selections s ON s.run_id = (SELECT run_id FROM asked) AND s.example_id = m.example_id
            JOIN candidate_rows_of((SELECT run_id FROM asked)) c ON c.group_id = s.group_id AND c.representative = s.rank
            JOIN examples e ON e.segment = c.segment AND e.row = c.row GROUP BY ALL
        ),
        standing AS (
            SELECT example_id, sum(n)::BIGINT AS rows, string_agg(coalesce(dataset, '(no name)') || ' ' || n, ', ' ORDER BY n DESC, dataset) AS datasets
            FROM represented GROUP BY example_id
        )
    SELECT w.example_id, (SELECT run_id FROM asked) AS run_id, s.example_id IS NOT NULL AS chosen,
        CASE
            WHEN i.row IS NOT NULL AND s.example_id IS NOT NULL THEN 'pinned'
            WHEN s.example_id IS NOT NULL THEN concat_ws(': ', 'chosen by ' || a.method, score_in_words(a.method, true, s.score))
            WHEN m.example_id IS NOT NULL THEN concat_ws(': ', 'left by ' || a.method, score_in_words(a.method, false, m.margin))
            WHEN w.example_id IN (SELECT example_id FROM forgotten) THEN 'forgotten: its text was erased'
            WHEN r.status <> 'ok' THEN 'rejected: ' || r.status
            WHEN w.segment IN (SELECT segment FROM segments WHERE heldout) THEN 'held out: in no pool, kept to evaluate on'
            WHEN l.example_id IS NOT NULL THEN 'left out: repeats target example ' || l.like_id
            WHEN w.example_id NOT IN (SELECT example_id FROM pool_of((SELECT run_id FROM asked))) THEN 'not in the pool of this run'
            WHEN x.reason IS NOT NULL THEN 'may not be chosen: ' || x.reason
            ELSE 'no feature'
        END AS reason,
        coalesce(s.group_id, m.group_id) AS group_id, k.size AS group_size, k.budget AS group_budget, s.rank,
        CASE WHEN s.example_id IS NOT NULL THEN coalesce(s.weight, 1) END AS weight, s.score, m.margin,
        u.place AS places_to_cut, u.best - u.margin AS margin_to_next,
        CASE
            WHEN s.example_id IS NOT NULL AND m.representative IS NOT NULL
                THEN stands_in_words(coalesce(g.rows, 0), g.datasets)
            WHEN n.example_id IS NOT NULL THEN 'nearest chosen example: ' || n.example_id || format(' (cosine {:.3f})', m.cosine)
        END AS stands, coalesce(g.rows, CASE WHEN s.example_id IS NOT NULL AND m.representative IS NOT NULL THEN 0 END) AS stands_for,
        n.example_id AS representative, m.cosine, t.part AS target_part, t.wanted_id AS target_example, t.cosine AS target_cosine, w.dataset, r.tokens, r.target_tokens, r.loss,
        coalesce(s.group_id, m.group_id) AS cluster, k.size AS cluster_size, k.budget AS cluster_budget, s.score AS correlation
    FROM wanted w CROSS JOIN asked a
    LEFT JOIN mine m USING (example_id)
    LEFT JOIN selections s ON s.example_id = w.example_id AND s.run_id = (SELECT run_id FROM asked)
    LEFT JOIN selection_targets t ON t.example_id = s.example_id AND t.run_id = s.run_id
    LEFT JOIN target_repeats l ON l.example_id = w.example_id AND l.target_id = (SELECT target_id FROM runs WHERE run_id = (SELECT run_id FROM asked))
    LEFT JOIN unchosen u ON u.example_id = w.example_id
    LEFT JOIN standing g ON g.example_id = w.example_id
    LEFT JOIN selections n ON n.run_id = (SELECT run_id FROM asked) AND n.group_id = m.group_id AND n.rank = m.representative
    LEFT JOIN run_groups k ON k.run_id = (SELECT run_id FROM asked) AND k.group_id = coalesce(s.group_id, m.group_id)
    LEFT JOIN feature_rows r ON r.segment = w.segment AND r.row = w.row
        AND r.space_id = (SELECT space_id FROM runs WHERE run_id = (SELECT run_id FROM asked))
    LEFT JOIN pins i ON i.run_id = (SELECT run_id FROM asked) AND i.segment = w.segment AND i.row = w.row
    LEFT JOIN exclusions x ON x.run_id = (SELECT run_id FROM asked) AND x.segment = w.segment AND x.row = w.row;

-- Reasons, the first that holds: the example came or went; another method chose; its pool was clustered again; its cluster's budget
-- changed; what is in the cluster changed (a new example took its place, or the mean moved); nothing of that: other settings. What holds
-- of clusters holds of strata, and of the whole pool as one.
CREATE OR REPLACE MACRO selection_diff(run_a, run_b) AS TABLE
    WITH a AS (SELECT * FROM selections WHERE run_id = run_a), b AS (SELECT * FROM selections WHERE run_id = run_b),
        changed AS (
            SELECT coalesce(a.example_id, b.example_id) AS example_id, CASE WHEN a.example_id IS NULL THEN 'entered' ELSE 'left' END AS change,
                a.group_id AS group_a, b.group_id AS group_b, a.rank AS rank_a, b.rank AS rank_b, a.weight AS weight_a, b.weight AS weight_b
            FROM a FULL JOIN b ON a.example_id = b.example_id WHERE a.example_id IS NULL OR b.example_id IS NULL
        ),
        pool_a AS (SELECT example_id FROM pool_of(run_a)), pool_b AS (SELECT example_id FROM pool_of(run_b)),
        began AS (SELECT started_at FROM runs WHERE run_id = run_a),
        same AS (
            SELECT count(DISTINCT method) = 1 AS method,
                count(DISTINCT clustering_id) <= 1 AND count(clustering_id) <> 1 AS clustering FROM runs WHERE run_id IN (run_a, run_b)
        ),
        budgets AS (
            SELECT group_id, ka.budget AS budget_a, kb.budget AS budget_b,
                ka.size IS DISTINCT FROM kb.size OR ka.inertia IS DISTINCT FROM kb.inertia AS moved
            FROM (SELECT * FROM run_groups WHERE run_id = run_a) ka FULL JOIN (SELECT * FROM run_groups WHERE run_id = run_b) kb USING (group_id)
        ),
        newcomers AS (SELECT DISTINCT group_id FROM b WHERE example_id NOT IN (FROM pool_a))
    SELECT d.example_id, d.change, e.dataset,
        CASE
            WHEN d.change = 'entered' AND d.example_id NOT IN (FROM pool_a) AND g.added_at > (FROM began) THEN 'new example'
            WHEN d.change = 'entered' AND d.example_id NOT IN (FROM pool_a) THEN 'back in the sources'
            WHEN d.change = 'left' AND d.example_id NOT IN (FROM pool_b) THEN 'retired: gone from the sources'
            WHEN NOT (SELECT method FROM same) THEN 'another method'
            WHEN NOT (SELECT clustering FROM same) THEN 'reclustered'
            WHEN d.change = 'entered' AND coalesce(k.budget_b, 0) > coalesce(k.budget_a, 0) THEN 'budget of its group grew'
            WHEN d.change = 'left' AND coalesce(k.budget_b, 0) < coalesce(k.budget_a, 0) THEN 'budget of its group shrank'
            WHEN d.change = 'left' AND coalesce(d.group_a, ca.group_id) IN (FROM newcomers) THEN 'displaced by a new example'
            WHEN k.moved AND d.change = 'left' THEN 'displaced: its cluster changed'
            WHEN k.moved THEN 'its cluster changed'
            WHEN d.change = 'entered' THEN 'preferred by other settings'
            ELSE 'outranked by other settings'
        END AS reason,
        coalesce(d.group_a, ca.group_id) AS group_a, coalesce(d.group_b, cb.group_id) AS group_b, d.rank_a, d.rank_b, d.weight_a, d.weight_b,
        coalesce(d.group_a, ca.group_id) AS cluster_a, coalesce(d.group_b, cb.group_id) AS cluster_b
    FROM changed d JOIN examples e USING (example_id) JOIN segments g USING (segment)
    LEFT JOIN candidate_rows_of(run_a) ca ON ca.segment = e.segment AND ca.row = e.row
    LEFT JOIN candidate_rows_of(run_b) cb ON cb.segment = e.segment AND cb.row = e.row
    LEFT JOIN budgets k ON k.group_id = coalesce(d.group_a, ca.group_id, d.group_b, cb.group_id);

CREATE OR REPLACE MACRO coverage_of(run) AS TABLE
    SELECT k.group_id, k.size, k.budget, k.selected, k.selected / nullif(k.size, 0) AS share, k.residual,
        k.inertia / nullif(k.size, 0) AS mean_squared_distance, k.group_id AS cluster
    FROM run_groups k WHERE k.run_id = run;

CREATE OR REPLACE VIEW coverage AS FROM coverage_of((SELECT run_id FROM latest_run));
COMMENT ON VIEW coverage IS 'how well the newest complete run stands for each of its groups';

CREATE OR REPLACE MACRO match_of(run) AS TABLE
    SELECT cluster, size, selected, error_plain, error_weighted, datasets_reached, clusters_reached, datasets_reached AS sources_reached FROM diagnostics
    WHERE run_id = run AND dimensions = 'seen';

CREATE OR REPLACE MACRO comparison_of(run) AS TABLE
    WITH measured AS (SELECT * FROM diagnostics WHERE run_id = run AND dimensions = 'reserved'),
        pairs AS (
            SELECT a.method, a.fraction, len(list_intersect(a.chosen, b.chosen)) AS shared, len(a.chosen) + len(b.chosen) AS total
            FROM measured a JOIN measured b ON a.method = b.method AND a.fraction = b.fraction AND a.seed < b.seed
            WHERE a.cluster IS NULL AND b.cluster IS NULL
        ),
        overlap AS (SELECT method, fraction, avg(shared / nullif(total - shared, 0)) AS jaccard FROM pairs GROUP BY ALL),
        inside AS (
            SELECT method, fraction, avg(error_plain) AS cluster_plain, avg(error_weighted) AS cluster_weighted
            FROM measured WHERE cluster IS NOT NULL GROUP BY ALL
        )
    SELECT m.method, m.fraction, count(*) AS seeds, avg(m.selected)::BIGINT AS selected, avg(m.error_plain) AS error_plain,
        avg(m.error_weighted) AS error_weighted, avg(m.error_fitted) AS error_fitted, stddev_samp(m.error_fitted) AS sd_fitted,
        any_value(i.cluster_plain) AS cluster_plain, any_value(i.cluster_weighted) AS cluster_weighted,
        avg(m.datasets_reached) AS datasets_reached, avg(m.clusters_reached) AS clusters_reached, any_value(o.jaccard) AS jaccard,
        avg(m.seconds) AS seconds, avg(m.datasets_reached) AS sources_reached
    FROM measured m LEFT JOIN inside i USING (method, fraction) LEFT JOIN overlap o USING (method, fraction)
    WHERE m.cluster IS NULL GROUP BY m.method, m.fraction;

CREATE OR REPLACE VIEW comparison AS FROM comparison_of(
    (SELECT run_id FROM diagnostics WHERE dimensions = 'reserved' ORDER BY measured_at DESC, run_id DESC LIMIT 1));
COMMENT ON VIEW comparison IS 'methods side by side on reserved dimensions, by fraction, of the run diagnosed last';

-- Means and standard errors over seeds, and differences from random with the same seed. base (no training) and full (the whole pool) are
-- compared at every fraction; base, which is measured once, at every seed. Where random has several settings, differences are from the first
-- by name, which is the run's own where that is among them. Of dataset_loss also what a mean over datasets hides where one of them has several
-- times the loss of the others: of the differences by dataset the median, and how many datasets are ahead of random.
CREATE OR REPLACE MACRO evaluation_of(evaluation) AS TABLE
    WITH scored AS (
            SELECT s.*, u.examples, u.steps, u.passes, u.train_seconds FROM evaluation_scores s
            JOIN evaluation_units u USING (evaluation_id, method, gradient, setting, fraction, seed, regime, weighted) WHERE s.evaluation_id = evaluation
        ),
        places AS (SELECT DISTINCT regime AS place, fraction AS of_fraction FROM scored WHERE method NOT IN ('base', 'full')),
        placed AS (
            SELECT p.place, p.of_fraction, s.* FROM scored s JOIN places p ON s.method = 'base'
                OR (p.place = s.regime AND (s.method = 'full' OR p.of_fraction = s.fraction))
        ),
        means AS (
            SELECT place, of_fraction, method, gradient, setting, weighted, measure, part, count(*) AS seeds, avg(value) AS value,
                stddev_samp(value) / sqrt(count(*)) AS se, avg(examples)::BIGINT AS examples, avg(steps)::BIGINT AS steps,
                avg(passes) AS passes, avg(train_seconds) AS train_seconds
            FROM placed GROUP BY ALL
        ),
        reference AS (FROM placed WHERE method = 'random' AND setting = (SELECT min(setting) FROM scored WHERE method = 'random')),
        differences AS (
            SELECT p.place, p.of_fraction, p.method, p.gradient, p.setting, p.weighted, p.measure, p.part, r.seed, p.value - r.value AS difference
            FROM placed p JOIN reference r ON r.place = p.place AND r.of_fraction = p.of_fraction AND r.measure = p.measure
                AND r.part IS NOT DISTINCT FROM p.part AND (p.method = 'base' OR r.seed = p.seed)
            WHERE p.method <> 'random' OR p.setting <> r.setting
        ),
        pairs AS (
            SELECT * EXCLUDE (seed, difference), count(*) AS pairs, avg(difference) AS vs_random,
                stddev_samp(difference) / sqrt(count(*)) AS vs_random_se
            FROM differences GROUP BY ALL
        ),
        medians AS (
            SELECT * EXCLUDE (seed, middle), avg(middle) AS median_vs_random, stddev_samp(middle) / sqrt(count(*)) AS median_vs_random_se
            FROM (
                SELECT * EXCLUDE (measure, part, difference), median(difference) AS middle FROM differences
                WHERE measure = 'loss' AND part IS NOT NULL GROUP BY ALL
            ) GROUP BY ALL
        ),
        compared AS (
            SELECT place, of_fraction, method, gradient, setting, weighted, count(*) AS datasets, count(*) FILTER (vs_random < 0) AS datasets_ahead
            FROM pairs WHERE measure = 'loss' AND part IS NOT NULL GROUP BY ALL
        ),
        over_datasets AS (
            SELECT *, 'dataset_loss' AS measure, NULL::VARCHAR AS part
            FROM medians JOIN compared USING (place, of_fraction, method, gradient, setting, weighted)
        )
    SELECT m.place AS regime, m.of_fraction AS fraction, m.method, m.gradient, m.setting, m.weighted, m.measure, m.part, m.seeds, m.value, m.se,
        d.vs_random, d.vs_random_se, coalesce(d.pairs, 0) AS pairs, b.median_vs_random, b.median_vs_random_se, b.datasets_ahead, b.datasets,
        m.examples, m.steps, m.passes, m.train_seconds, b.datasets_ahead AS sources_ahead, b.datasets AS sources
    FROM means m LEFT JOIN pairs d ON d.place = m.place AND d.of_fraction = m.of_fraction AND d.method = m.method AND d.gradient = m.gradient
        AND d.setting = m.setting AND d.weighted = m.weighted AND d.measure = m.measure AND d.part IS NOT DISTINCT FROM m.part
    LEFT JOIN over_datasets b ON b.place = m.place AND b.of_fraction = m.of_fraction AND b.method = m.method AND b.gradient = m.gradient
        AND b.setting = m.setting AND b.weighted = m.weighted AND b.measure = m.measure AND b.part IS NOT DISTINCT FROM m.part;

CREATE OR REPLACE VIEW evaluated AS FROM evaluation_of(
    (SELECT evaluation_id FROM evaluation_units ORDER BY finished_at DESC LIMIT 1)) WHERE part IS NULL;
COMMENT ON VIEW evaluated IS 'methods side by side by what training on their selections gave, of the evaluation at work last';

CREATE OR REPLACE VIEW example_history AS
    WITH had AS (
        SELECT o.example_id, r.run_id, r.started_at, r.finished_at FROM occurrences o JOIN run_files f USING (file_id) JOIN runs r USING (run_id)
        WHERE NOT EXISTS (FROM rejects x WHERE x.stage = 'near-duplicates' AND x.run_id = r.run_id AND x.example_id = o.example_id)
            AND NOT EXISTS (FROM target_repeats t WHERE t.target_id = r.target_id AND t.example_id = o.example_id)
    )
    SELECT e.example_id, e.dataset, e.first_run, max_by(h.run_id, (coalesce(h.finished_at, 'infinity'), h.started_at)) AS last_run,
        count(DISTINCT h.run_id) AS runs
    FROM examples e LEFT JOIN had h USING (example_id)
    WHERE e.segment NOT IN (SELECT segment FROM segments WHERE heldout)
    GROUP BY e.example_id, e.dataset, e.first_run;
COMMENT ON VIEW example_history IS 'run that met the example first, and the last one that had it in its pool';

CREATE OR REPLACE VIEW retired AS
    SELECT h.example_id, h.dataset, h.first_run, h.last_run, h.runs FROM example_history h
    WHERE h.runs > 0 AND EXISTS (FROM latest_run) AND h.example_id NOT IN (SELECT g.example_id FROM forgotten g)
        AND h.example_id NOT IN (SELECT o.example_id FROM occurrences o JOIN run_files f USING (file_id) JOIN latest_run l USING (run_id));
COMMENT ON VIEW retired IS 'examples of earlier runs that are gone from the sources of the newest complete one: their features are kept, and they come back with their source';

CREATE OR REPLACE VIEW drift AS
    SELECT run_id, r.started_at, f.pool, f.added, f.returned, f.retired, f.share, f.distance_shift, f.distance_error, f.movement, f.loss_shift,
        f.unseen, f.advice, f.why, f.refitted, f.clustering_id
    FROM refreshes f JOIN runs r USING (run_id);
COMMENT ON VIEW drift IS 'what changed from run to run, and whether clusters and warm-up still fit';

-- Rows that left count against the earlier selection; `without_sticky` is what a choice without regard to the earlier one would have changed.
CREATE OR REPLACE VIEW churn AS
    WITH gone AS (
            SELECT f.run_id, f.base_run, count(*) AS earlier, count(*) FILTER (WHERE s.example_id IS NULL) AS left_it
            FROM refreshes f JOIN selections b ON b.run_id = f.base_run
            LEFT JOIN selections s ON s.run_id = f.run_id AND s.example_id = b.example_id GROUP BY f.run_id, f.base_run
        ),
        held AS (SELECT run_id, coalesce(sum(kept), 0)::BIGINT AS kept_by_sticky FROM run_groups GROUP BY run_id)
    SELECT run_id, base_run, earlier, left_it, kept_by_sticky, left_it / earlier AS churn, (left_it + kept_by_sticky) / earlier AS churn_without_sticky
    FROM gone JOIN held USING (run_id);
COMMENT ON VIEW churn IS 'how much of the earlier selection a run left out, with the setting sticky and without';
