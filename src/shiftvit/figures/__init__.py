"""All figures: of a run, of an evaluation and of predictions."""
