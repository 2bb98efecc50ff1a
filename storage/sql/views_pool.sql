-- What a run read, what it left out, and how runs differ. The views without arguments answer for `latest_run`.

CREATE OR REPLACE MACRO duplicates_of(run) AS TABLE
    SELECT o.example_id, count(*) AS occurrences, count(DISTINCT r.source) AS sources, list_sort(list(DISTINCT r.source)) AS source_names,
        list_sort(list(DISTINCT o.dataset)) AS datasets
    FROM run_files r JOIN occurrences o USING (file_id) WHERE r.run_id = run
    GROUP BY o.example_id HAVING count(*) > 1;

CREATE OR REPLACE VIEW duplicates AS FROM duplicates_of((SELECT run_id FROM latest_run));
COMMENT ON VIEW duplicates IS 'examples that occur more than once in the files of the newest complete run';

-- Of its own files, of its own pool, its own near-duplicates, and rows that repeat its target: rejects of files that are no longer sources belong to no run.
CREATE OR REPLACE MACRO rejects_of(run) AS TABLE
    SELECT r.stage, r.reason, r.detail, r.snippet, r.file_id, r.segment, r.row, r.example_id, r.rows, r.summary FROM rejects r
    WHERE (r.stage = 'ingest' AND r.file_id IN (SELECT f.file_id FROM run_files f WHERE f.run_id = run))
        OR (r.stage = 'near-duplicates' AND r.run_id = run)
        OR (r.stage = 'gradients' AND r.space_id = (SELECT s.space_id FROM runs s WHERE s.run_id = run)
            AND r.example_id IN (SELECT p.example_id FROM pool_of(run) p))
    UNION ALL
    SELECT 'target' AS stage, CASE WHEN t.example_id = t.like_id THEN 'in the target' ELSE 'same words as in the target' END AS reason,
        'repeats target example ' || t.like_id AS detail, NULL AS snippet, NULL AS file_id, e.segment, e.row, e.example_id, 1 AS rows, false AS summary
    FROM target_repeats t JOIN runs g USING (target_id) JOIN examples e USING (example_id)
    WHERE g.run_id = run AND e.segment NOT IN (SELECT h.segment FROM segments h WHERE h.heldout)
        AND e.example_id IN (SELECT o.example_id FROM occurrences o JOIN run_files f USING (file_id) WHERE f.run_id = run);

-- What a run needs features of: its pool, its target set, and the rows that it leaves out for that.
CREATE OR REPLACE MACRO wanted_of(run) AS TABLE
    SELECT p.example_id, p.segment, p.row FROM pool_of(run) p
    UNION SELECT e.example_id, e.segment, e.row FROM target_examples t JOIN runs g USING (target_id) JOIN examples e USING (example_id)
    WHERE g.run_id = run AND e.example_id NOT IN (SELECT f.example_id FROM forgotten f)
    UNION SELECT x.example_id, x.segment, x.row FROM rejects_of(run) x WHERE x.stage = 'target';

CREATE OR REPLACE MACRO rejects_by_reason_of(run) AS TABLE
    SELECT r.stage, r.reason, coalesce(n.source, f.source) AS source, sum(r.rows)::BIGINT AS rows,
        min(r.detail) FILTER (WHERE NOT r.summary) AS for_example, min_by(r.snippet, r.row) AS snippet
    FROM rejects_of(run) r LEFT JOIN files f USING (file_id) LEFT JOIN run_files n ON n.run_id = run AND n.file_id = r.file_id
    GROUP BY ALL;

CREATE OR REPLACE VIEW rejects_by_reason AS FROM rejects_by_reason_of((SELECT run_id FROM latest_run));
COMMENT ON VIEW rejects_by_reason IS 'what the newest complete run did not use, and why';

CREATE OR REPLACE MACRO near_duplicates_of(run) AS TABLE
    SELECT r.example_id, e.dataset, r.like_id, r.likeness, r.kept_id, k.dataset AS kept_dataset
    FROM rejects r JOIN examples e USING (example_id) LEFT JOIN examples k ON k.example_id = r.kept_id
    WHERE r.run_id = run AND r.stage = 'near-duplicates';

CREATE OR REPLACE VIEW near_duplicates AS FROM near_duplicates_of((SELECT run_id FROM latest_run));
COMMENT ON VIEW near_duplicates IS 'examples that the newest complete run left out because they nearly repeat another';

CREATE OR REPLACE MACRO sources_of(run) AS TABLE
    SELECT n.source, count(*) AS files, sum(f.size)::BIGINT AS bytes, sum(f.rows_done)::BIGINT AS rows, sum(coalesce(r.rejected, 0))::BIGINT AS rejected,
        bool_and(f.complete) AS complete
    FROM run_files n JOIN files f USING (file_id)
    LEFT JOIN (SELECT file_id, sum(rows) AS rejected FROM rejects WHERE stage = 'ingest' GROUP BY file_id) r USING (file_id)
    WHERE n.run_id = run GROUP BY n.source;

CREATE OR REPLACE VIEW sources AS FROM sources_of((SELECT run_id FROM latest_run));
COMMENT ON VIEW sources IS 'what the newest complete run read, by source';

-- What a run changed against the one before it; nothing of a run that had none.
CREATE OR REPLACE MACRO changes_of(run) AS TABLE
    SELECT d.* FROM selection_diff((SELECT f.base_run FROM refreshes f WHERE f.run_id = run), run) d
    WHERE (SELECT f.base_run FROM refreshes f WHERE f.run_id = run) IS NOT NULL;

CREATE OR REPLACE VIEW run_sizes AS
    SELECT g.run_id, sum(g.size)::BIGINT + coalesce(any_value(x.rows), 0) AS pool, sum(g.selected)::BIGINT AS selected
    FROM run_groups g LEFT JOIN (SELECT run_id, count(*) AS rows FROM exclusions GROUP BY run_id) x USING (run_id) GROUP BY g.run_id;
COMMENT ON VIEW run_sizes IS 'of every run that chose: examples with a feature, whether they might be chosen or not, and how many were chosen';

CREATE OR REPLACE VIEW trend AS
    WITH cost AS (
            SELECT run_id, sum(seconds) AS seconds, max(peak_bytes) AS peak_bytes,
                coalesce(sum((detail->>'tokens')::BIGINT) FILTER (WHERE stage IN ('warm-up', 'gradients')), 0)::BIGINT AS tokens
            FROM stages GROUP BY run_id
        ),
        error AS (SELECT run_id, error_plain, error_weighted FROM diagnostics WHERE dimensions = 'seen' AND cluster IS NULL)
    SELECT r.run_id, r.finished_at, r.name, r.method, c.pool, c.selected, c.selected / c.pool AS fraction,
        f.base_run, f.added, f.returned, f.retired, h.churn, f.share AS joined_share, f.movement, f.loss_shift, f.advice, f.refitted,
        e.error_plain, e.error_weighted, k.seconds, k.tokens, k.peak_bytes
    FROM runs r JOIN run_sizes c USING (run_id) LEFT JOIN cost k USING (run_id) LEFT JOIN error e USING (run_id)
    LEFT JOIN refreshes f USING (run_id) LEFT JOIN churn h USING (run_id)
    WHERE r.status = 'complete' ORDER BY r.finished_at, r.run_id;
COMMENT ON VIEW trend IS 'complete runs in the order of their completion: what each chose from what, what changed, how near it came, what it cost';

CREATE OR REPLACE MACRO trend_of(run_name) AS TABLE FROM trend t
    WHERE t.run_id IN (SELECT n.run_id FROM named_runs n WHERE n.name = run_name) ORDER BY t.finished_at, t.run_id;

-- `examples` is a pattern of the Parquet files under the root. `tagcos sql` fills it in; elsewhere name it, or ask from the root's folder.
CREATE OR REPLACE MACRO texts_in(run, examples) AS TABLE
    SELECT s.run_id, s.group_id, s.rank, s.example_id, s.dataset, s.weight, p.messages[1].content AS first_turn,
        list_filter(p.messages, lambda m: m.role = 'assistant')[-1].content AS last_answer, p.messages, p.tools, s.group_id AS cluster
    FROM selection_of(run) s JOIN read_parquet(examples) p USING (example_id);

CREATE OR REPLACE MACRO texts(run, examples := 'examples/*/*.parquet') AS TABLE FROM texts_in(run, examples);
