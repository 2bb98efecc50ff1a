"""The other ways to select that TAGCOS is measured against, and how well any selection stands for its pool."""
