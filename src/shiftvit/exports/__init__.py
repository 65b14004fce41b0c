"""Exports trained models to other formats, and keeps an export only if it gives the answers of the model."""
