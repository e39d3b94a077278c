"""A job's options: what may be asked for, and what a farm permits."""
