"""From images to labels: what runs a trained model, and the stream around it."""
