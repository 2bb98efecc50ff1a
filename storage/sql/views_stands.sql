-- Which chosen example stands for which: within its group, the one whose feature has the largest cosine with the row's.

CREATE OR REPLACE MACRO nearest_chosen(run) AS TABLE
    SELECT c.run_id, e.example_id, e.dataset, c.group_id, s.example_id AS representative, c.cosine, e.example_id = s.example_id AS itself,
        c.group_id AS cluster
    FROM candidate_rows_of(run) c JOIN examples e ON e.segment = c.segment AND e.row = c.row
    JOIN selections s ON s.run_id = c.run_id AND s.group_id = c.group_id AND s.rank = c.representative;

-- How a selection covers the parts of its target set.
CREATE OR REPLACE MACRO target_coverage_of(run) AS TABLE
    WITH parts AS (
            SELECT n.part, count(*) AS examples, avg(n.chosen_cosine) AS chosen_cosine, avg(n.pool_cosine) AS pool_cosine, any_value(t.weight) AS weight
            FROM target_nearest n JOIN target_examples t ON t.target_id = (SELECT r.target_id FROM runs r WHERE r.run_id = run)
                AND t.part = n.part AND t.example_id = n.example_id
            WHERE n.run_id = run GROUP BY n.part
        ),
        served AS (SELECT s.part, count(*) AS chosen FROM selection_targets s WHERE s.run_id = run GROUP BY s.part)
    SELECT p.part, p.weight / sum(p.weight) OVER () AS weight, p.examples, coalesce(s.chosen, 0) AS chosen, p.chosen_cosine, p.pool_cosine
    FROM parts p LEFT JOIN served s USING (part) ORDER BY p.part;

CREATE OR REPLACE VIEW target_coverage AS FROM target_coverage_of((SELECT run_id FROM latest_run));
COMMENT ON VIEW target_coverage IS 'how the newest complete run covers the parts of its target set; empty without one';

-- `examples`: the nearest, the middle and the furthest of the others. Equal examples are all nearest to the one chosen first.
CREATE OR REPLACE MACRO stands_for(run) AS TABLE
    WITH near AS MATERIALIZED (FROM nearest_chosen(run)),
        others AS (
            SELECT representative, example_id, row_number() OVER mine AS place, count(*) OVER (PARTITION BY representative) AS n
            FROM near WHERE NOT itself WINDOW mine AS (PARTITION BY representative ORDER BY cosine DESC, example_id)
        ),
        shown AS (
            SELECT representative, list(example_id ORDER BY place) AS examples FROM others
            WHERE place IN (1, (n + 1) // 2, n) GROUP BY representative
        ),
        counted AS (
            SELECT representative, dataset, count(*) AS n, sum(cosine) AS cosines, min(cosine) AS least FROM near GROUP BY ALL
        ),
        named AS (
            SELECT representative, sum(n)::BIGINT AS rows, sum(cosines) / sum(n) AS mean_cosine, min(least) AS least_cosine,
                string_agg(coalesce(dataset, '(no name)') || ' ' || n, ', ' ORDER BY n DESC, dataset) AS datasets
            FROM counted GROUP BY representative
        )
    SELECT s.run_id, s.example_id, e.dataset, s.group_id, s.rank, coalesce(n.rows, 0) AS rows, coalesce(n.rows, 0) / k.size AS share_of_group,
        n.datasets, n.mean_cosine, n.least_cosine, h.examples, s.group_id AS cluster
    FROM selections s JOIN examples e USING (example_id) JOIN run_groups k ON k.run_id = s.run_id AND k.group_id = s.group_id
    LEFT JOIN named n ON n.representative = s.example_id LEFT JOIN shown h ON h.representative = s.example_id
    WHERE s.run_id = run AND s.group_id IN (SELECT group_id FROM near);
