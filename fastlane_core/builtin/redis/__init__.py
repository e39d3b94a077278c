"""The queue on Redis: a single server, Sentinel or Cluster. Needs the extra `fastlane-core[redis]`."""
