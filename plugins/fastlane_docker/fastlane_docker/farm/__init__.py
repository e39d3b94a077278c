"""Farms and their hosts: which take a task, and which may take new runs."""
