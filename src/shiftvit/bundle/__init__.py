"""A trained model as files: what they hold, its card, its graph's metadata, the way to the Hub and back."""

from shiftvit.bundle.bundle import Bundle as Bundle
