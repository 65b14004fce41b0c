"""A bundle on the disk: its files and its JSON, which one a name means, and the published weights."""
