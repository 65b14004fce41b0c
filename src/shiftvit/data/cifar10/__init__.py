"""CIFAR-10, from a download to verified arrays."""
