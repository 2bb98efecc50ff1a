-- What the catalog must not say: each statement finds (place, problem). `tagcos check` runs them all.

SELECT 'example ' || example_id, 'is held ' || count(*) || ' times' FROM examples GROUP BY example_id HAVING count(*) > 1;

SELECT 'occurrences of file ' || file_id, count(*) || ' name an unknown example'
FROM occurrences ANTI JOIN examples USING (example_id) GROUP BY file_id;

SELECT 'file ' || f.url, 'gave ' || f.entries || ' occurrences and rejects, but ' || coalesce(n, 0) || ' are there'
FROM files f LEFT JOIN (
    SELECT file_id, sum(rows) AS n
    FROM (SELECT file_id, 1 AS rows FROM occurrences UNION ALL SELECT file_id, rows FROM rejects WHERE stage = 'ingest') GROUP BY file_id
) USING (file_id)
WHERE f.entries <> coalesce(n, 0);

SELECT 'segment ' || segment, 'has ' || coalesce(p.n, 0) || ' rows in its parts, but ' || coalesce(e.n, 0) || ' examples'
FROM (SELECT segment, sum(rows) AS n FROM parts GROUP BY segment) p
FULL JOIN (SELECT segment, count(*) AS n FROM examples GROUP BY segment) e USING (segment)
WHERE p.n IS DISTINCT FROM e.n;

SELECT 'segment ' || segment, 'has ' || count(*) || ' examples, but rows ' || min(row) || ' to ' || max(row) || ', ' || count(DISTINCT row) || ' of them'
FROM examples GROUP BY segment HAVING min(row) <> 0 OR max(row) <> count(*) - 1 OR count(DISTINCT row) <> count(*);

SELECT 'block ' || b.block || ' of ' || b.segment || ' in space ' || b.space_id,
    'has ' || b.rows || ' rows, but ' || coalesce(r.n, 0) || ' feature rows'
FROM blocks b LEFT JOIN (
    SELECT r.space_id, r.segment, r.row // g.block_rows AS block, count(*) AS n
    FROM feature_rows r JOIN feature_segments g USING (space_id, segment) GROUP BY ALL
) r USING (space_id, segment, block)
WHERE b.rows <> coalesce(r.n, 0);

SELECT 'feature rows of ' || r.segment || ' in space ' || r.space_id, count(*) || ' belong to no complete block'
FROM feature_rows r JOIN feature_segments g USING (space_id, segment)
ANTI JOIN blocks b ON b.space_id = r.space_id AND b.segment = r.segment AND b.block = r.row // g.block_rows
GROUP BY r.space_id, r.segment;

SELECT 'clustering ' || clustering_id, 'has ' || coalesce(p.n, 0) || ' rows regrouped, but ' || coalesce(a.n, 0) || ' assigned'
FROM (SELECT clustering_id, sum(rows) AS n FROM cluster_parts GROUP BY clustering_id) p
FULL JOIN (SELECT clustering_id, count(*) AS n FROM assignments GROUP BY clustering_id) a USING (clustering_id)
JOIN clusterings c USING (clustering_id)
WHERE p.n IS DISTINCT FROM a.n AND (p.n IS NOT NULL OR c.recipe IS NOT NULL);

SELECT 'group ' || c.group_id || ' of run ' || c.run_id, 'has ' || c.selected || ' selected, but ' || coalesce(s.n, 0) || ' selections'
FROM run_groups c LEFT JOIN (SELECT run_id, group_id, count(*) AS n FROM selections GROUP BY run_id, group_id) s USING (run_id, group_id)
WHERE c.selected <> coalesce(s.n, 0);

SELECT 'run ' || run_id, count(*) || ' selections name an unknown example' FROM selections ANTI JOIN examples USING (example_id) GROUP BY run_id;

SELECT 'run ' || run_id, 'is unknown, but has ' || count(*) || ' selections' FROM selections ANTI JOIN runs USING (run_id) GROUP BY run_id;

SELECT 'run ' || run_id, 'chose ' || count(*) - count(DISTINCT example_id) || ' examples twice'
FROM selections GROUP BY run_id HAVING count(*) <> count(DISTINCT example_id);

SELECT 'run ' || run_id, 'works in unknown space ' || space_id FROM runs WHERE space_id IS NOT NULL AND space_id NOT IN (SELECT space_id FROM feature_spaces);

SELECT 'run ' || c.run_id, 'chose ' || count(*) || ' examples that are held out'
FROM selections c JOIN examples USING (example_id) JOIN segments g USING (segment) WHERE g.heldout GROUP BY c.run_id;

SELECT 'evaluation ' || evaluation_id, 'is unknown, but has ' || count(*) || ' units'
FROM evaluation_units ANTI JOIN evaluations USING (evaluation_id) GROUP BY evaluation_id;

SELECT 'evaluation ' || evaluation_id, count(*) || ' scores belong to no complete unit'
FROM evaluation_scores ANTI JOIN evaluation_units USING (evaluation_id, method, gradient, fraction, seed, regime, weighted) GROUP BY evaluation_id;
