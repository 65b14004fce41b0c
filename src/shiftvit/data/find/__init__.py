"""Finds a user's images and splits them, without decoding any."""
