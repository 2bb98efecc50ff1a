"""Named bytes under a root: local folder or object store."""
