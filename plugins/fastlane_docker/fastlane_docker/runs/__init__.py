"""Runs as containers: made once, watched to their end, found again and removed."""
