"""Logs of containers, exact to the byte and resumable."""
