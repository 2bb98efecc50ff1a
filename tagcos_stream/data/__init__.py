"""Files of any common shape to canonical examples."""
