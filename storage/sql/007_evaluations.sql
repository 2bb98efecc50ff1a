-- Held-out examples, and what models trained on selections were measured to be.

ALTER TABLE segments ADD COLUMN heldout BOOLEAN DEFAULT false;
COMMENT ON COLUMN segments.heldout IS 'its examples are kept out of every pool, for `tagcos evaluate`';
COMMENT ON COLUMN stages.stage IS 'ingest (or pool, of a run that selects again), warm-up, gradients, cluster, select, publish';

CREATE TABLE evaluations (
    evaluation_id VARCHAR PRIMARY KEY, run_id VARCHAR NOT NULL, model VARCHAR NOT NULL, model_fingerprint VARCHAR NOT NULL,
    heldout_examples BIGINT NOT NULL, heldout_digest VARCHAR, config JSON NOT NULL, versions JSON NOT NULL, started_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE evaluations IS 'what is held fixed while selections are compared by training on them: pool, model, training, held-out rows, tasks';
COMMENT ON COLUMN evaluations.evaluation_id IS 'hash of run, model, training settings, held-out rows and tasks: what agrees in all of them is comparable';
COMMENT ON COLUMN evaluations.run_id IS 'complete run whose pool was selected from';
COMMENT ON COLUMN evaluations.model IS 'model that was trained, as the user named it';
COMMENT ON COLUMN evaluations.model_fingerprint IS 'hash of its weights, configuration and tokenizer';
COMMENT ON COLUMN evaluations.heldout_examples IS 'held-out examples that the loss is measured on';
COMMENT ON COLUMN evaluations.heldout_digest IS 'hash of their tokens and targets; null where there are none';
COMMENT ON COLUMN evaluations.config IS 'settings of training and measuring, with task files by digest';
COMMENT ON COLUMN evaluations.versions IS 'code and package versions';
COMMENT ON COLUMN evaluations.started_at IS 'UTC';

CREATE TABLE evaluation_units (
    evaluation_id VARCHAR, method VARCHAR, gradient VARCHAR, fraction DOUBLE, seed BIGINT, regime VARCHAR, weighted BOOLEAN,
    selection_run VARCHAR, examples BIGINT NOT NULL, steps BIGINT NOT NULL, passes DOUBLE NOT NULL, tokens BIGINT NOT NULL,
    train_loss DOUBLE, train_seconds DOUBLE NOT NULL, measure_seconds DOUBLE NOT NULL, copied BOOLEAN NOT NULL, finished_at TIMESTAMP NOT NULL,
    PRIMARY KEY (evaluation_id, method, gradient, fraction, seed, regime, weighted)
);
COMMENT ON TABLE evaluation_units IS 'one model trained and measured; a unit that is here is complete';
COMMENT ON COLUMN evaluation_units.evaluation_id IS 'the evaluation';
COMMENT ON COLUMN evaluation_units.method IS 'selection method, full (the whole pool) or base (the model as it is, not trained)';
COMMENT ON COLUMN evaluation_units.gradient IS 'gradient variant of the features selected by; empty where the method reads none';
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

CREATE TABLE evaluation_scores (
    evaluation_id VARCHAR NOT NULL, method VARCHAR NOT NULL, gradient VARCHAR NOT NULL, fraction DOUBLE NOT NULL, seed BIGINT NOT NULL,
    regime VARCHAR NOT NULL, weighted BOOLEAN NOT NULL, measure VARCHAR NOT NULL, part VARCHAR, value DOUBLE, sd DOUBLE, items BIGINT NOT NULL
);
COMMENT ON TABLE evaluation_scores IS 'what the model of a unit was measured to be';
COMMENT ON COLUMN evaluation_scores.evaluation_id IS 'the evaluation';
COMMENT ON COLUMN evaluation_scores.method IS 'as of the unit';
COMMENT ON COLUMN evaluation_scores.gradient IS 'as of the unit';
COMMENT ON COLUMN evaluation_scores.fraction IS 'as of the unit';
COMMENT ON COLUMN evaluation_scores.seed IS 'as of the unit';
COMMENT ON COLUMN evaluation_scores.regime IS 'as of the unit';
COMMENT ON COLUMN evaluation_scores.weighted IS 'as of the unit';
COMMENT ON COLUMN evaluation_scores.measure IS 'loss (held-out cross-entropy, nats, mean over examples of the mean over their target tokens), source_loss (mean over sources of their losses), or a task: mmlu, bbh, gsm8k, tydiqa (shares from 0 to 1)';
COMMENT ON COLUMN evaluation_scores.part IS 'dataset of the held-out rows, subject or language of the task; null for all';
COMMENT ON COLUMN evaluation_scores.value IS 'mean over the items (of source_loss: over sources)';
COMMENT ON COLUMN evaluation_scores.sd IS 'standard deviation over the items; null of one item';
COMMENT ON COLUMN evaluation_scores.items IS 'held-out examples, sources or questions';
