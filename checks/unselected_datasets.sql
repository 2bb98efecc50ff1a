-- Datasets with a tenth of the pool or more of which nothing is selected.
-- severity: warn
-- after: select
SELECT dataset, pool FROM by_dataset($run) WHERE selected = 0 AND share_of_pool >= 0.1 ORDER BY pool DESC;
