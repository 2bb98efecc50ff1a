"""The method: arrays and batches in, arrays out. Imports neither flows nor storage."""
