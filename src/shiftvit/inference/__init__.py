"""From images to labels: the runtimes that run a trained model, and the predictor around them."""
