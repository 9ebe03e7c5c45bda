"""Differential privacy: what is charged, what it adds up to, and how noise is drawn and summed."""
