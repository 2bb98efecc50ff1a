-- Which vector of the user's own every feature of the variant `vectors` was made from: another vector for the same example means
-- another space, new examples do not.

CREATE TABLE vector_rows (space_id VARCHAR NOT NULL, segment VARCHAR NOT NULL, row BIGINT NOT NULL, digest UBIGINT NOT NULL);
