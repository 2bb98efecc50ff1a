-- What came into a run's sources and what went, against another run. `run_a` is the earlier run and may be NULL: then everything is new.
-- Only files that one of the two runs lacks are looked at, so that two runs of the same files cost nothing.

CREATE OR REPLACE MACRO example_changes(run_a, run_b) AS TABLE
    WITH files_a AS (SELECT f.file_id, r.source, f.url FROM run_files r JOIN files f USING (file_id) WHERE r.run_id = run_a),
        files_b AS (SELECT f.file_id, r.source, f.url FROM run_files r JOIN files f USING (file_id) WHERE r.run_id = run_b),
        came AS (
            SELECT DISTINCT o.example_id, f.source, f.url FROM files_b f JOIN occurrences o USING (file_id)
            WHERE f.file_id NOT IN (SELECT x.file_id FROM files_a x) AND o.example_id IN (SELECT p.example_id FROM pool_of(run_b) p)
                AND o.example_id NOT IN (SELECT p.example_id FROM pool_of(run_a) p)
        ),
        went AS (
            SELECT DISTINCT o.example_id, f.source, f.url FROM files_a f JOIN occurrences o USING (file_id)
            WHERE f.file_id NOT IN (SELECT x.file_id FROM files_b x) AND o.example_id IN (SELECT p.example_id FROM pool_of(run_a) p)
                AND o.example_id NOT IN (SELECT x.example_id FROM occurrences x WHERE x.file_id IN (SELECT y.file_id FROM files_b y))
        )
    SELECT c.example_id, c.source, c.url,
        CASE WHEN s.added_at <= (SELECT r.started_at FROM runs r WHERE r.run_id = run_a) THEN 'returned' ELSE 'new' END AS change
    FROM came c JOIN examples e USING (example_id) JOIN segments s USING (segment)
    UNION ALL SELECT w.example_id, w.source, w.url, 'retired' FROM went w;

CREATE OR REPLACE MACRO file_changes(run_a, run_b) AS TABLE
    WITH a AS (SELECT f.* REPLACE (r.source AS source) FROM run_files r JOIN files f USING (file_id) WHERE r.run_id = run_a),
        b AS (SELECT f.* REPLACE (r.source AS source) FROM run_files r JOIN files f USING (file_id) WHERE r.run_id = run_b),
        counted AS (
            SELECT c.url, count(*) FILTER (c.change = 'new') AS new, count(*) FILTER (c.change = 'returned') AS returned,
                count(*) FILTER (c.change = 'retired') AS retired
            FROM example_changes(run_a, run_b) c GROUP BY c.url
        )
    SELECT coalesce(b.source, a.source) AS source, coalesce(b.url, a.url) AS url,
        CASE WHEN a.url IS NULL THEN 'new' WHEN b.url IS NULL THEN 'gone' ELSE 'changed' END AS change,
        a.rows_done AS rows_before, b.rows_done AS rows, a.size AS bytes_before, b.size AS bytes, coalesce(n.new, 0) AS new,
        coalesce(n.returned, 0) AS returned, coalesce(n.retired, 0) AS retired, b.file_id
    FROM a FULL JOIN b ON a.url = b.url LEFT JOIN counted n ON n.url = coalesce(b.url, a.url)
    WHERE a.file_id IS DISTINCT FROM b.file_id;

-- An example that occurs in several sources counts for each of them.
CREATE OR REPLACE MACRO source_changes(run_a, run_b) AS TABLE
    WITH occurring_a AS (
            SELECT r.source, count(DISTINCT o.example_id) AS n FROM run_files r JOIN occurrences o USING (file_id)
            WHERE r.run_id = run_a AND o.example_id IN (SELECT p.example_id FROM pool_of(run_a) p) GROUP BY r.source
        ),
        occurring_b AS (
            SELECT r.source, count(DISTINCT o.example_id) AS n,
                count(DISTINCT o.example_id) FILTER (o.example_id IN (SELECT s.example_id FROM selections s WHERE s.run_id = run_b)) AS selected
            FROM run_files r JOIN occurrences o USING (file_id)
            WHERE r.run_id = run_b AND o.example_id IN (SELECT p.example_id FROM pool_of(run_b) p) GROUP BY r.source
        ),
        moved AS (
            SELECT c.source, count(DISTINCT c.example_id) FILTER (c.change = 'new') AS new,
                count(DISTINCT c.example_id) FILTER (c.change = 'returned') AS returned,
                count(DISTINCT c.example_id) FILTER (c.change = 'retired') AS retired
            FROM example_changes(run_a, run_b) c GROUP BY c.source
        ),
        names AS (
            SELECT r.source, count(*) FILTER (r.run_id = run_b) AS files FROM run_files r
            WHERE r.run_id IN (run_a, run_b) GROUP BY r.source
        ),
        refused AS (
            SELECT r.source, sum(x.rows)::BIGINT AS n FROM run_files r JOIN rejects x USING (file_id)
            WHERE r.run_id = run_b AND x.stage = 'ingest' GROUP BY r.source
        )
    SELECT n.source, n.files, coalesce(a.n, 0) AS before, coalesce(b.n, 0) AS pool, coalesce(m.new, 0) AS new, coalesce(m.returned, 0) AS returned,
        coalesce(m.retired, 0) AS retired, coalesce(x.n, 0) AS rejected, coalesce(b.selected, 0) AS selected
    FROM names n LEFT JOIN occurring_a a USING (source) LEFT JOIN occurring_b b USING (source) LEFT JOIN moved m USING (source)
    LEFT JOIN refused x USING (source);
