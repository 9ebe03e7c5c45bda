"""Releases: a trained model's folder with its papers, every file hashed, and signed."""
