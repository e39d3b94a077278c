"""Storage in MongoDB, a standalone server or a replica set: for deployments of more than one machine."""
