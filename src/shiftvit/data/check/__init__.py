"""Finds what would harm training: corrupt files, duplicates, leakage, imbalance."""
