-- The advice of a refresh in standard terms: "recluster" instead of "cluster anew", "repeat warm-up" instead of "warm up anew".

UPDATE refreshes SET advice = replace(replace(advice, 'cluster anew', 'recluster'), 'warm up anew', 'repeat warm-up');
