"""Where and how partitions of a stage are computed: threads, processes, Ray."""
