-- Selection methods explain their scores: the words come with the method, so the catalog keeps them as the newest run knew them.

CREATE TABLE methods (
    method VARCHAR PRIMARY KEY, within VARCHAR NOT NULL, weights BOOLEAN NOT NULL, seeded BOOLEAN NOT NULL, reference VARCHAR NOT NULL,
    words_chosen VARCHAR NOT NULL, words_left VARCHAR NOT NULL, words_unscored VARCHAR, scale DOUBLE NOT NULL
);
COMMENT ON TABLE methods IS 'selection methods, as the version that ran last registers them';
COMMENT ON COLUMN methods.method IS 'name';
COMMENT ON COLUMN methods.within IS 'groups that share the budget: clusters, strata or pool';
COMMENT ON COLUMN methods.weights IS 'chosen examples get weights';
COMMENT ON COLUMN methods.seeded IS 'another seed makes another selection';
COMMENT ON COLUMN methods.reference IS 'paper and address; empty for what needs none';
COMMENT ON COLUMN methods.words_chosen IS 'format string that states the score of a chosen example';
COMMENT ON COLUMN methods.words_left IS 'format string that states the score of one that was not chosen';
COMMENT ON COLUMN methods.words_unscored IS 'what is stated of an example that was chosen without a score; null for nothing';
COMMENT ON COLUMN methods.scale IS 'the score is multiplied by it before it is formatted';

ALTER TABLE runs ADD COLUMN method VARCHAR;
UPDATE runs SET method = coalesce(config->>'method', 'tagcos');
COMMENT ON COLUMN runs.method IS 'selection method, as in config';
