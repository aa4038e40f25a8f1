"""`make bench`: syncer, the local disk and the programs that people use instead, side by side.

Nothing of syncer's inside is used: each system is a command that mounts, and a folder.
"""
