-- Weights of sources, and the bounds and token grants that a selection settled on while it divided its budget.

ALTER TABLE run_files ADD COLUMN weight DOUBLE;
CREATE TABLE budget_steps (run_id VARCHAR, step INTEGER, dataset VARCHAR, group_id INTEGER, amount BIGINT NOT NULL);
