"""Plugins: found, checked, and kept with what they registered; each application has its own registry.

    settings, registry = load_application_parts(path, os.environ)
    registry.runners()

Built-in plugins go through the same hooks as installed ones, whose entry points are in the group `fastlane`.
"""

from __future__ import annotations

from fastlane_core.plugins.application import load_application_parts
from fastlane_core.plugins.discovery import FoundPlugin, PluginInfo, PluginState, find_plugins
from fastlane_core.plugins.registry import PluginRegistry

__all__ = [
    "FoundPlugin",
    "PluginInfo",
    "PluginRegistry",
    "PluginState",
    "find_plugins",
    "load_application_parts",
]
