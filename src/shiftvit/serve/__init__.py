"""The HTTP server of `shiftvit serve`. A request passes `guard`, a route in `app`, `model` and `batching`."""
