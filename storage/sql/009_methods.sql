-- Selection methods explain their scores: the words come with the method, so the catalog keeps them as the newest run knew them.

CREATE TABLE methods (
    method VARCHAR PRIMARY KEY, within VARCHAR NOT NULL, weights BOOLEAN NOT NULL, seeded BOOLEAN NOT NULL, reference VARCHAR NOT NULL,
    words_chosen VARCHAR NOT NULL, words_left VARCHAR NOT NULL, words_unscored VARCHAR, scale DOUBLE NOT NULL
);

ALTER TABLE runs ADD COLUMN method VARCHAR;
UPDATE runs SET method = coalesce(config->>'method', 'tagcos');
