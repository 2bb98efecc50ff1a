-- Beyond a number of rejects of one reason in one file, a row stands for many. A file says how many occurrences and rejects it gave:
-- blank lines give none, and the rows of a tree several or none.

ALTER TABLE rejects ADD COLUMN rows BIGINT DEFAULT 1;
ALTER TABLE rejects ADD COLUMN summary BOOLEAN DEFAULT false;

ALTER TABLE files ADD COLUMN entries BIGINT DEFAULT 0;
UPDATE files SET entries = coalesce((
    SELECT count(*) FROM (SELECT o.file_id FROM occurrences o UNION ALL SELECT r.file_id FROM rejects r WHERE r.stage = 'ingest') e
    WHERE e.file_id = files.file_id
), 0);
