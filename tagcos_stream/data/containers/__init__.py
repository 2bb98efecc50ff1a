"""File containers: bytes to rows."""
