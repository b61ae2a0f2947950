"""SQLite: the journal and what the daemon must remember. The SQL stands in .sql files."""
