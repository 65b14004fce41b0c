"""The batches of an epoch: made on the host, or cut from images that lie on the device."""
