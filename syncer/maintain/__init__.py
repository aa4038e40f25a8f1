"""Looking after a data directory and its repository: checking, repairing, pruning."""
