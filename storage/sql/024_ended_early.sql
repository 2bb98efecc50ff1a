-- Whether a file's end is missing or was not read: known while it is read, also where its last row is a reject that is only counted.

ALTER TABLE files ADD COLUMN ended_early VARCHAR;
UPDATE files SET ended_early = (
    SELECT min(r.reason) FROM rejects r WHERE r.file_id = files.file_id AND r.stage = 'ingest'
        AND (r.reason IN ('corrupt_file', 'zip_bomb', 'blank_lines')
            OR (r.reason IN ('broken_json', 'bad_encoding') AND r.row = files.rows_done - 1))
);
