"""The versioned metadata: SQLite, epochs, what files hold, nodes and names."""
