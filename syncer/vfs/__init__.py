"""What file system calls mean: names (calls), open files, buffers, listings."""
