"""`Fault`: what is wrong with an image file."""

from __future__ import annotations


class Fault(Exception):
    """Says what is wrong with a file. The message is the rest of a sentence that begins with the file's name."""
