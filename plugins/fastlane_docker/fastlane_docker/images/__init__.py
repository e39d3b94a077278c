"""Images: their names, and how they get onto engines."""
