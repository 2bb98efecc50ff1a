-- Rows that a run had to choose (setting include).

CREATE TABLE pins (run_id VARCHAR NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL);
