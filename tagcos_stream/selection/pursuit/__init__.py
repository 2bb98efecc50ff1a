"""Orthogonal matching pursuit."""
