-- A file that one command names by itself and another by its folder has the source of each run, not that of the run that read it first.
-- What changed since a run that was dropped cannot be told any more. Choices copied from an unfinished run, which may yet drop them,
-- have candidates of their own.

ALTER TABLE run_files ADD COLUMN source VARCHAR;
UPDATE run_files SET source = f.source FROM files f WHERE f.file_id = run_files.file_id;
UPDATE refreshes SET base_run = NULL WHERE base_run NOT IN (SELECT run_id FROM runs);
INSERT INTO candidates BY NAME SELECT c.* REPLACE (k.run_id AS run_id)
    FROM candidates c JOIN run_groups k ON k.copied_from = c.run_id AND k.group_id = c.group_id
    WHERE c.run_id IN (SELECT run_id FROM runs WHERE status <> 'complete');
UPDATE run_groups SET copied_from = NULL WHERE copied_from IN (SELECT run_id FROM runs WHERE status <> 'complete');
