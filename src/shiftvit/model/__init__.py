"""The model: the shift, the blocks, the network, its presets and weights from elsewhere."""

from shiftvit.backend import ensure_backend

ensure_backend()
