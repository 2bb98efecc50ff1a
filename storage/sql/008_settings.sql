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
COMMENT ON TABLE evaluation_units IS 'one model trained and measured; a unit that is here is complete';
COMMENT ON COLUMN evaluation_units.evaluation_id IS 'the evaluation';
COMMENT ON COLUMN evaluation_units.method IS 'selection method, full (the whole pool) or base (the model as it is, not trained)';
COMMENT ON COLUMN evaluation_units.gradient IS 'gradient variant of the features selected by; empty where the method reads none';
COMMENT ON COLUMN evaluation_units.setting IS 'setting, as NAME=VALUE, in which the selection differs from the run''s own; empty for none';
COMMENT ON COLUMN evaluation_units.fraction IS 'share of the pool that was selected; 1 of full, 0 of base';
COMMENT ON COLUMN evaluation_units.seed IS 'seed of the selection (where it has one), of the adapter and of the order of examples';
COMMENT ON COLUMN evaluation_units.regime IS 'steps: all units of the evaluation train for as many steps; epochs: all see their own examples as often; none: base';
COMMENT ON COLUMN evaluation_units.weighted IS 'losses were weighted by the selection''s weights';
COMMENT ON COLUMN evaluation_units.selection_run IS 'run that made the selection; null of full and base';
COMMENT ON COLUMN evaluation_units.examples IS 'examples that were trained on; selected ones without a target token at this maximum length are left out';
COMMENT ON COLUMN evaluation_units.steps IS 'optimizer steps';
COMMENT ON COLUMN evaluation_units.passes IS 'times that each example was seen: steps * batch / examples';
COMMENT ON COLUMN evaluation_units.tokens IS 'tokens trained on, without padding';
COMMENT ON COLUMN evaluation_units.train_loss IS 'mean loss over the last tenth of the steps, nats; null of base';
COMMENT ON COLUMN evaluation_units.train_seconds IS 'time of training';
COMMENT ON COLUMN evaluation_units.measure_seconds IS 'time of measuring';
COMMENT ON COLUMN evaluation_units.copied IS 'both regimes ask for the same training, and it was done under the other';
COMMENT ON COLUMN evaluation_units.finished_at IS 'UTC';

ALTER TABLE evaluation_scores ADD COLUMN setting VARCHAR DEFAULT '';
COMMENT ON COLUMN evaluation_scores.setting IS 'as of the unit';
