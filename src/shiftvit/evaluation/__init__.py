"""How good a model is: logits, metrics, whole evaluations, explanations, reports."""
