-- Sources of which more than a fifth of the rows are rejected.
-- severity: stop
-- after: ingest
SELECT source, rows, rejected FROM sources_of($run) WHERE rejected > 0.2 * rows ORDER BY rejected DESC;
