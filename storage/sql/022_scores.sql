-- Numeric columns of the user's own: which a file has, their values where they were met, and the order of a run's files, which decides
-- whose value counts.

ALTER TABLE files ADD COLUMN scores VARCHAR[];
ALTER TABLE occurrences ADD COLUMN scores STRUCT(name VARCHAR, value DOUBLE)[];
ALTER TABLE run_files ADD COLUMN place INTEGER;
