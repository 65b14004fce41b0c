"""What images a user has, how they lie, and how they are split; nothing is decoded."""
