-- Who ran, what was read, which examples exist and where they lie. Times are UTC. Example ids are blake2b-128 of the canonical
-- conversation, 32 lower-case hex digits. No foreign keys: they get in the way of clean-up, and `tagcos check` verifies references.

CREATE TABLE migrations (version INTEGER PRIMARY KEY, name VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL);

CREATE TABLE store (store_id VARCHAR NOT NULL, views_digest VARCHAR NOT NULL);

CREATE TABLE runs (
    run_id VARCHAR PRIMARY KEY, status VARCHAR NOT NULL, config JSON NOT NULL, config_hash VARCHAR NOT NULL, versions JSON NOT NULL,
    seeds JSON NOT NULL, space_id VARCHAR, clustering_id VARCHAR, error VARCHAR, attempts INTEGER NOT NULL, host VARCHAR NOT NULL,
    pid BIGINT NOT NULL, started_at TIMESTAMP NOT NULL, updated_at TIMESTAMP NOT NULL, finished_at TIMESTAMP
);

CREATE TABLE stages (
    run_id VARCHAR, stage VARCHAR, seconds DOUBLE NOT NULL, peak_bytes BIGINT, detail JSON NOT NULL, finished_at TIMESTAMP NOT NULL,
    PRIMARY KEY (run_id, stage)
);

CREATE TABLE files (
    file_id VARCHAR PRIMARY KEY, source VARCHAR NOT NULL, url VARCHAR NOT NULL, digest VARCHAR NOT NULL, size BIGINT, format VARCHAR,
    spec VARCHAR NOT NULL, rows_done BIGINT NOT NULL, complete BOOLEAN NOT NULL, first_run VARCHAR NOT NULL, added_at TIMESTAMP NOT NULL
);

CREATE TABLE run_files (run_id VARCHAR, file_id VARCHAR, PRIMARY KEY (run_id, file_id));

CREATE TABLE segments (segment VARCHAR PRIMARY KEY, run_id VARCHAR NOT NULL, closed BOOLEAN NOT NULL, added_at TIMESTAMP NOT NULL);

CREATE TABLE parts (
    segment VARCHAR, part INTEGER, first_row BIGINT NOT NULL, rows BIGINT NOT NULL, path VARCHAR NOT NULL, bytes BIGINT NOT NULL,
    digest VARCHAR NOT NULL, PRIMARY KEY (segment, part)
);

CREATE TABLE examples (
    example_id VARCHAR NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, dataset VARCHAR, turns INTEGER NOT NULL, chars BIGINT NOT NULL,
    first_run VARCHAR NOT NULL
);

CREATE TABLE occurrences (file_id VARCHAR NOT NULL, row BIGINT NOT NULL, example_id VARCHAR NOT NULL, dataset VARCHAR, source_id VARCHAR);

CREATE TABLE rejects (
    run_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, file_id VARCHAR, space_id VARCHAR, segment VARCHAR, row BIGINT NOT NULL, example_id VARCHAR,
    reason VARCHAR NOT NULL, detail VARCHAR, snippet VARCHAR
);
