-- What the user's own checks of a run found. They are run after the sources are read and after the selection.

CREATE TABLE check_results (
    run_id VARCHAR, stage VARCHAR, name VARCHAR, severity VARCHAR NOT NULL, rows BIGINT NOT NULL, first_row JSON, checked_at TIMESTAMP NOT NULL,
    PRIMARY KEY (run_id, stage, name)
);
