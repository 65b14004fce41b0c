"""Random changes of training images: cuts, colours, erasing, mixing."""
