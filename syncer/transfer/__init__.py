"""The threads that move blocks: uploads, read-ahead, eviction."""
