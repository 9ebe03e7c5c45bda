"""The operator's console: pages on runs and sites, and what an operator does there."""
