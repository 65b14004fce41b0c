"""The batches of an epoch, made on the host or on the device."""
