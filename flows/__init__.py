"""Wiring: stages of the pipeline, command line and Prefect flow."""
