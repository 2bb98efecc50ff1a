"""Long proofs, each started by its own command: `python -m tests.proofs.NAME`."""
