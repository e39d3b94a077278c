#!/bin/sh
# `make demo`: a Fastlane on this machine with one hello-world job.
set -eu
exec .venv/bin/python deploy/demo.py
