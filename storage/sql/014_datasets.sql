-- Results are grouped by dataset, and "held out" is said of examples only: an eighth of the dimensions is reserved. Views keep the names
-- sources_reached, sources_ahead and sources for one version.

ALTER TABLE diagnostics RENAME COLUMN sources_reached TO datasets_reached;
UPDATE diagnostics SET dimensions = 'reserved' WHERE dimensions = 'held out';
UPDATE evaluation_scores SET measure = 'dataset_loss' WHERE measure = 'source_loss';
