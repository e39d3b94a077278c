"""Settings: a file of `KEY = value` lines, then the environment, each key typed by the model that owns its section.

    settings = Settings.load(sections, path=Path("fastlane.conf"), environment=os.environ)
    settings.section(WorkerSettings).lease_seconds

What counts, from weakest to strongest: the model's default, the file, the environment, what the command line says.
Everything that is wrong is reported at once, before anything starts; nothing in a file is ever executed.
"""

from __future__ import annotations

from fastlane_core.settings.core import CORE_SECTIONS, ApiSettings, GeneralSettings, TextList, WorkerSettings
from fastlane_core.settings.environment import RESERVED_ENVIRONMENT
from fastlane_core.settings.loading import Settings, read_general
from fastlane_core.settings.rendering import render

__all__ = [
    "CORE_SECTIONS",
    "RESERVED_ENVIRONMENT",
    "ApiSettings",
    "GeneralSettings",
    "Settings",
    "TextList",
    "WorkerSettings",
    "read_general",
    "render",
]
