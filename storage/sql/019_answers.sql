-- What is computed from the texts of answers once for each example: repetition, and the loss that instruction-following difficulty
-- divides by. A row that is here was computed; its value is null where there is none.

CREATE TABLE answer_keys (segment VARCHAR NOT NULL, row BIGINT NOT NULL, key UBIGINT NOT NULL);

CREATE TABLE answer_losses (space_id VARCHAR NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, loss DOUBLE);
