"""From bytes to pixels: the one decoder of image files, and images in Parquet."""
