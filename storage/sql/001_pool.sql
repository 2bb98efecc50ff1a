-- Who ran, what was read, which examples exist and where they lie. Times are UTC. Example ids are blake2b-128 of the canonical
-- conversation, 32 lower-case hex digits. No foreign keys: they get in the way of clean-up, and `tagcos check` verifies references.

CREATE TABLE migrations (version INTEGER PRIMARY KEY, name VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL);
COMMENT ON TABLE migrations IS 'schema steps that were applied to this file; the largest version is the schema version';
COMMENT ON COLUMN migrations.version IS 'number of the SQL file';
COMMENT ON COLUMN migrations.name IS 'name of the SQL file';
COMMENT ON COLUMN migrations.applied_at IS 'when, UTC';

CREATE TABLE store (store_id VARCHAR NOT NULL, views_digest VARCHAR NOT NULL);
COMMENT ON TABLE store IS 'one row: which root this catalog belongs to';
COMMENT ON COLUMN store.store_id IS 'identity of the root, as in its tagcos.json';
COMMENT ON COLUMN store.views_digest IS 'digest of the SQL that made the views and macros; they are made anew when it changes';

CREATE TABLE runs (
    run_id VARCHAR PRIMARY KEY, status VARCHAR NOT NULL, config JSON NOT NULL, config_hash VARCHAR NOT NULL, versions JSON NOT NULL,
    seeds JSON NOT NULL, space_id VARCHAR, clustering_id VARCHAR, error VARCHAR, attempts INTEGER NOT NULL, host VARCHAR NOT NULL,
    pid BIGINT NOT NULL, started_at TIMESTAMP NOT NULL, updated_at TIMESTAMP NOT NULL, finished_at TIMESTAMP
);
COMMENT ON TABLE runs IS 'every run ever started, with its lineage';
COMMENT ON COLUMN runs.run_id IS 'readable and unique: label and start time';
COMMENT ON COLUMN runs.status IS 'running (also after a kill), failed, interrupted or complete; only complete runs are final';
COMMENT ON COLUMN runs.config IS 'all settings of the run';
COMMENT ON COLUMN runs.config_hash IS 'hash of the settings; an unfinished run with the same hash is resumed';
COMMENT ON COLUMN runs.versions IS 'code and package versions';
COMMENT ON COLUMN runs.seeds IS 'every seed that was used';
COMMENT ON COLUMN runs.space_id IS 'feature space the run worked in';
COMMENT ON COLUMN runs.clustering_id IS 'clustering the run selected from';
COMMENT ON COLUMN runs.error IS 'last error of a failed or interrupted run';
COMMENT ON COLUMN runs.attempts IS 'times the run was started or resumed';
COMMENT ON COLUMN runs.host IS 'machine of the last attempt';
COMMENT ON COLUMN runs.pid IS 'process of the last attempt';
COMMENT ON COLUMN runs.started_at IS 'first attempt, UTC';
COMMENT ON COLUMN runs.updated_at IS 'last sign of life, UTC';
COMMENT ON COLUMN runs.finished_at IS 'when it became complete, UTC';

CREATE TABLE stages (
    run_id VARCHAR, stage VARCHAR, seconds DOUBLE NOT NULL, peak_bytes BIGINT, detail JSON NOT NULL, finished_at TIMESTAMP NOT NULL,
    PRIMARY KEY (run_id, stage)
);
COMMENT ON TABLE stages IS 'finished stages of runs';
COMMENT ON COLUMN stages.run_id IS 'the run';
COMMENT ON COLUMN stages.stage IS 'ingest, warm-up, gradients, clustering, selection, ...';
COMMENT ON COLUMN stages.seconds IS 'wall time, summed over attempts where the stage says so in its detail';
COMMENT ON COLUMN stages.peak_bytes IS 'peak resident memory of the process during the stage, bytes';
COMMENT ON COLUMN stages.detail IS 'what the stage came to: counts, and what a resume needs';
COMMENT ON COLUMN stages.finished_at IS 'UTC';

CREATE TABLE files (
    file_id VARCHAR PRIMARY KEY, source VARCHAR NOT NULL, url VARCHAR NOT NULL, digest VARCHAR NOT NULL, size BIGINT, format VARCHAR,
    spec VARCHAR NOT NULL, rows_done BIGINT NOT NULL, complete BOOLEAN NOT NULL, first_run VARCHAR NOT NULL, added_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE files IS 'versions of input files: the same URL with other content, or read by other rules, is another version';
COMMENT ON COLUMN files.file_id IS 'hash of url, digest and spec';
COMMENT ON COLUMN files.source IS 'name of the source the file belongs to';
COMMENT ON COLUMN files.url IS 'where it was read from';
COMMENT ON COLUMN files.digest IS 'content hash, or the store''s etag';
COMMENT ON COLUMN files.size IS 'bytes';
COMMENT ON COLUMN files.format IS 'recognised format';
COMMENT ON COLUMN files.spec IS 'reading rules that change what the rows become (columns, dataset, limit), as text';
COMMENT ON COLUMN files.rows_done IS 'input rows ingested so far: where a resumed read goes on';
COMMENT ON COLUMN files.complete IS 'read to its end';
COMMENT ON COLUMN files.first_run IS 'run that met it first';
COMMENT ON COLUMN files.added_at IS 'UTC';

CREATE TABLE run_files (run_id VARCHAR, file_id VARCHAR, PRIMARY KEY (run_id, file_id));
COMMENT ON TABLE run_files IS 'the file versions a run reads: its pool is the examples that occur in them';
COMMENT ON COLUMN run_files.run_id IS 'the run';
COMMENT ON COLUMN run_files.file_id IS 'the file version';

CREATE TABLE segments (segment VARCHAR PRIMARY KEY, run_id VARCHAR NOT NULL, closed BOOLEAN NOT NULL, added_at TIMESTAMP NOT NULL);
COMMENT ON TABLE segments IS 'batches of examples first met by one run; rows are numbered from 0 in order of ingest';
COMMENT ON COLUMN segments.segment IS 'seg-00001 and on';
COMMENT ON COLUMN segments.run_id IS 'run that met the examples first';
COMMENT ON COLUMN segments.closed IS 'features were planned for it: it takes no more examples';
COMMENT ON COLUMN segments.added_at IS 'UTC';

CREATE TABLE parts (
    segment VARCHAR, part INTEGER, first_row BIGINT NOT NULL, rows BIGINT NOT NULL, path VARCHAR NOT NULL, bytes BIGINT NOT NULL,
    digest VARCHAR NOT NULL, PRIMARY KEY (segment, part)
);
COMMENT ON TABLE parts IS 'Parquet files that hold the examples of a segment';
COMMENT ON COLUMN parts.segment IS 'the segment';
COMMENT ON COLUMN parts.part IS 'number in the segment, from 0';
COMMENT ON COLUMN parts.first_row IS 'row of the segment that the file begins with';
COMMENT ON COLUMN parts.rows IS 'examples in the file';
COMMENT ON COLUMN parts.path IS 'key under the root';
COMMENT ON COLUMN parts.bytes IS 'size of the file';
COMMENT ON COLUMN parts.digest IS 'blake2b-128 of the file, hex; checked whenever it is read';

CREATE TABLE examples (
    example_id VARCHAR NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, dataset VARCHAR, turns INTEGER NOT NULL, chars BIGINT NOT NULL,
    first_run VARCHAR NOT NULL
);
COMMENT ON TABLE examples IS 'every distinct conversation ever met; equal content is one example';
COMMENT ON COLUMN examples.example_id IS 'blake2b-128 of the canonical conversation, 32 hex digits';
COMMENT ON COLUMN examples.segment IS 'segment that holds it';
COMMENT ON COLUMN examples.row IS 'row in the segment, from 0';
COMMENT ON COLUMN examples.dataset IS 'dataset of its first occurrence';
COMMENT ON COLUMN examples.turns IS 'messages in the conversation';
COMMENT ON COLUMN examples.chars IS 'characters of all messages';
COMMENT ON COLUMN examples.first_run IS 'run that met it first';

CREATE TABLE occurrences (file_id VARCHAR NOT NULL, row BIGINT NOT NULL, example_id VARCHAR NOT NULL, dataset VARCHAR, source_id VARCHAR);
COMMENT ON TABLE occurrences IS 'where examples were found: every accepted input row';
COMMENT ON COLUMN occurrences.file_id IS 'file version';
COMMENT ON COLUMN occurrences.row IS 'row in the file, from 0';
COMMENT ON COLUMN occurrences.example_id IS 'what the row is';
COMMENT ON COLUMN occurrences.dataset IS 'dataset the row names, or the source''s';
COMMENT ON COLUMN occurrences.source_id IS 'the source''s own id for the row, where it has one';

CREATE TABLE rejects (
    run_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, file_id VARCHAR, space_id VARCHAR, segment VARCHAR, row BIGINT NOT NULL, example_id VARCHAR,
    reason VARCHAR NOT NULL, detail VARCHAR, snippet VARCHAR
);
COMMENT ON TABLE rejects IS 'every input row that is no example (stage ingest), every example that has no feature (stage gradients) or is left out of a run (stage near-duplicates)';
COMMENT ON COLUMN rejects.run_id IS 'run that rejected it';
COMMENT ON COLUMN rejects.stage IS 'ingest, near-duplicates or gradients';
COMMENT ON COLUMN rejects.file_id IS 'ingest: the file version';
COMMENT ON COLUMN rejects.space_id IS 'gradients: the feature space';
COMMENT ON COLUMN rejects.segment IS 'gradients: the segment';
COMMENT ON COLUMN rejects.row IS 'row of the file (ingest) or of the segment (gradients), from 0';
COMMENT ON COLUMN rejects.example_id IS 'gradients: the example';
COMMENT ON COLUMN rejects.reason IS 'a short fixed word';
COMMENT ON COLUMN rejects.detail IS 'what exactly was wrong';
COMMENT ON COLUMN rejects.snippet IS 'the beginning of the input';
