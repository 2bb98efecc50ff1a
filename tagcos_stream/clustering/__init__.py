"""Streamed k-means."""
