-- Incremental refresh: this step is the refresh branch's; here it only keeps the numbers without a gap.
SELECT 1;
