"""Methods compared: without training (diagnose) and by training (evaluate)."""
