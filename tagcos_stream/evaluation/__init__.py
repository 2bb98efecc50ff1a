"""Selections compared by what they teach: the same base trained on each, and measured on rows and tasks that none has seen."""
