"""Examples to gradient features: chat template, adapter, per-sample gradients, random projection."""
