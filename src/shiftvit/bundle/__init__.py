"""A trained model as files: its bundle, its card, the metadata of its graph, and its transfer to and from the Hub."""

from shiftvit.bundle.bundle import Bundle as Bundle
