-- Held-out examples, and what models trained on selections were measured to be.

ALTER TABLE segments ADD COLUMN heldout BOOLEAN DEFAULT false;

CREATE TABLE evaluations (
    evaluation_id VARCHAR PRIMARY KEY, run_id VARCHAR NOT NULL, model VARCHAR NOT NULL, model_fingerprint VARCHAR NOT NULL,
    heldout_examples BIGINT NOT NULL, heldout_digest VARCHAR, config JSON NOT NULL, versions JSON NOT NULL, started_at TIMESTAMP NOT NULL
);

CREATE TABLE evaluation_units (
    evaluation_id VARCHAR, method VARCHAR, gradient VARCHAR, fraction DOUBLE, seed BIGINT, regime VARCHAR, weighted BOOLEAN,
    selection_run VARCHAR, examples BIGINT NOT NULL, steps BIGINT NOT NULL, passes DOUBLE NOT NULL, tokens BIGINT NOT NULL,
    train_loss DOUBLE, train_seconds DOUBLE NOT NULL, measure_seconds DOUBLE NOT NULL, copied BOOLEAN NOT NULL, finished_at TIMESTAMP NOT NULL,
    PRIMARY KEY (evaluation_id, method, gradient, fraction, seed, regime, weighted)
);

CREATE TABLE evaluation_scores (
    evaluation_id VARCHAR NOT NULL, method VARCHAR NOT NULL, gradient VARCHAR NOT NULL, fraction DOUBLE NOT NULL, seed BIGINT NOT NULL,
    regime VARCHAR NOT NULL, weighted BOOLEAN NOT NULL, measure VARCHAR NOT NULL, part VARCHAR, value DOUBLE, sd DOUBLE, items BIGINT NOT NULL
);
