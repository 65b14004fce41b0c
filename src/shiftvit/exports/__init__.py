"""Trained models in other formats, each proven equal to the model that it came from before it is kept."""
