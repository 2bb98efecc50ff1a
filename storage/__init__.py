"""Everything durable: paths, the Zarr feature store, the DuckDB catalog and its SQL. Imports only the method's plain types."""
