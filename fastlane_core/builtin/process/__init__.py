"""The process runner: runs commands as processes on this machine, for development, tests and trusted jobs."""
