"""Metadata through the remote: segments, checkpoints, who may write, and how others follow."""
