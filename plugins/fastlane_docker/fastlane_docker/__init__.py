"""The Docker farm: runs jobs in containers on one or many plain Docker engines."""
