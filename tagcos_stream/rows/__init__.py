"""Feature rows in memory or streamed from disk, and loops over them."""
