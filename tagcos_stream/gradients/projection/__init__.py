"""Random projections from adapter parameters to feature dimensions."""
