"""One Docker engine: where it is, how it is spoken to, and what its silence means."""
