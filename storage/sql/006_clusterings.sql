-- Regrouped clusters of format 1 (no recipe names them) lack what refreshes add up. They are made from the segments: the next run
-- clusters anew, gc takes their files. Which cluster a row was in, and what runs chose from it, stays on record.

DELETE FROM cluster_parts WHERE clustering_id IN (SELECT clustering_id FROM clusterings WHERE recipe IS NULL);
