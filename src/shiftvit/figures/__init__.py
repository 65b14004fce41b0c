"""All drawing of figures: of a run, of an evaluation, of predictions."""
