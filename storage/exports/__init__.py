"""Selections written for trainers."""
