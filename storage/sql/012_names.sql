-- Runs belong to a named series: main for runs that read sources, none for selections made again from stored features, unless the
-- user names one. `tagcos promote` lets a name refer to any complete run.

ALTER TABLE runs ADD COLUMN name VARCHAR;
UPDATE runs SET name = 'main' WHERE reselects IS NULL;

CREATE TABLE promotions (name VARCHAR NOT NULL, run_id VARCHAR NOT NULL, promoted_at TIMESTAMP NOT NULL);
