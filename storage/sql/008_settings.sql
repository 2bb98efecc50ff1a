-- Units tell apart the settings that their selections were made by (`tagcos evaluate --vary`). A primary key cannot be altered: the
-- table is made anew.

ALTER TABLE evaluation_units RENAME TO earlier;
CREATE TABLE evaluation_units (
    evaluation_id VARCHAR, method VARCHAR, gradient VARCHAR, setting VARCHAR, fraction DOUBLE, seed BIGINT, regime VARCHAR, weighted BOOLEAN,
    selection_run VARCHAR, examples BIGINT NOT NULL, steps BIGINT NOT NULL, passes DOUBLE NOT NULL, tokens BIGINT NOT NULL,
    train_loss DOUBLE, train_seconds DOUBLE NOT NULL, measure_seconds DOUBLE NOT NULL, copied BOOLEAN NOT NULL, finished_at TIMESTAMP NOT NULL,
    PRIMARY KEY (evaluation_id, method, gradient, setting, fraction, seed, regime, weighted)
);
INSERT INTO evaluation_units BY NAME SELECT *, '' AS setting FROM earlier;
DROP TABLE earlier;

ALTER TABLE evaluation_scores ADD COLUMN setting VARCHAR DEFAULT '';
