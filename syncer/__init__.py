"""syncer: a big collection behind a small disk."""

__version__ = "0.1.0"
