"""Draws all figures: of a run, of an evaluation, of predictions."""
