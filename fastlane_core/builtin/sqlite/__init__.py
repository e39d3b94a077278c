"""Storage and queue in one SQLite file: needs nothing installed, and is fit for real use on a single machine."""
