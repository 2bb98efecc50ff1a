-- A file that one command names by itself and another by its folder has the source of each run, not that of the run that read it first.
-- What changed since a run that was dropped cannot be told any more.

ALTER TABLE run_files ADD COLUMN source VARCHAR;
UPDATE run_files SET source = f.source FROM files f WHERE f.file_id = run_files.file_id;
UPDATE refreshes SET base_run = NULL WHERE base_run NOT IN (SELECT run_id FROM runs);
