"""Measures how good a model is: logits, metrics, whole evaluations, explanations, reports."""
