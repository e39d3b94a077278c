"""Fixtures for the tests of core and of every plugin."""

pytest_plugins = ["tests.services.fixtures"]
