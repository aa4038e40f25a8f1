"""Blocks on this machine: room (budget), files (cache), rows (ledger), fetching, and `Blocks`."""
