"""What happens to a job: the life cycle, and the loops that carry executions through it.

Nothing here talks to a server by itself; all I/O goes through storage, queue and runners.
"""
