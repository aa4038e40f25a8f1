"""A data directory at work: its folder, its engine, the mounted process and what belongs to it."""
