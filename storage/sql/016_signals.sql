-- Rows of a run's pool that may not be chosen although they have a feature, and why (settings where, include, exclude).

CREATE TABLE exclusions (run_id VARCHAR NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, reason VARCHAR NOT NULL);
