"""From a recipe to a run folder."""

from shiftvit.backend import ensure_backend

ensure_backend()
