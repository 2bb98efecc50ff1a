"""Tables of the DuckDB catalog, one module each."""
