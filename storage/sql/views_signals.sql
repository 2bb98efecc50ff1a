-- What is known of every example of a run's pool, and which of them might not be chosen. The setting `where` is a condition on signals.

-- Of several rows that are one example, the first with a value counts: by the order of the run's files, then of rows. Names are in lower case.
CREATE OR REPLACE MACRO scores_of(run) AS TABLE
    SELECT v.example_id, map_from_entries(list((v.name, v.value) ORDER BY v.name)) AS scores FROM (
        SELECT u.example_id, lower(u.score.name) AS name, arg_min(u.score.value, (u.place, u.file_id, u.row)) AS value FROM (
            SELECT o.example_id, o.file_id, o.row, f.place, unnest(o.scores) AS score
            FROM occurrences o JOIN run_files f ON f.run_id = run AND f.file_id = o.file_id WHERE o.scores IS NOT NULL
        ) u GROUP BY ALL
    ) v GROUP BY v.example_id;

CREATE OR REPLACE MACRO signals_of(run) AS TABLE
    SELECT p.example_id, p.segment, p.row, p.dataset, p.turns, p.chars, r.tokens, r.target_tokens, r.loss, r.norm, r.loss / l.loss AS ifd,
        CASE WHEN k.key <> 0 THEN count(*) OVER (PARTITION BY k.key) END AS repeated, a.cluster, a.distance,
        g.pool_alignment, g.cluster_alignment, g.target_alignment, g.alike, s.scores
    FROM pool_of(run) p
    LEFT JOIN feature_rows r ON r.space_id = (SELECT n.space_id FROM runs n WHERE n.run_id = run) AND r.segment = p.segment AND r.row = p.row
        AND r.status = 'ok'
    LEFT JOIN answer_losses l ON l.space_id = (SELECT n.space_id FROM runs n WHERE n.run_id = run) AND l.segment = p.segment AND l.row = p.row
    LEFT JOIN answer_keys k ON k.segment = p.segment AND k.row = p.row
    LEFT JOIN assignments a ON a.clustering_id = (SELECT n.clustering_id FROM runs n WHERE n.run_id = run) AND a.segment = p.segment
        AND a.row = p.row
    LEFT JOIN alignments g ON g.run_id = run AND g.segment = p.segment AND g.row = p.row
    LEFT JOIN scores_of(run) s ON s.example_id = p.example_id;

CREATE OR REPLACE VIEW signals AS FROM signals_of((SELECT run_id FROM latest_run));
COMMENT ON VIEW signals IS 'one row an example of the pool of the newest complete run: what the setting where may name';

CREATE OR REPLACE MACRO exclusions_of(run) AS TABLE
    SELECT e.example_id, e.dataset, x.reason FROM exclusions x JOIN examples e ON e.segment = x.segment AND e.row = x.row WHERE x.run_id = run;

CREATE OR REPLACE MACRO exclusions_by_reason_of(run) AS TABLE
    SELECT x.reason, count(*) AS examples, count(*) / (SELECT count(*) FROM pool_of(run)) AS share_of_pool
    FROM exclusions x WHERE x.run_id = run GROUP BY x.reason;

CREATE OR REPLACE VIEW exclusions_by_reason AS FROM exclusions_by_reason_of((SELECT run_id FROM latest_run));
COMMENT ON VIEW exclusions_by_reason IS 'examples with a feature that the newest complete run did not choose from, by the condition that they fail';
