"""The configuration: typed sections, read from a TOML file, what it includes, and variables of the environment.

Each part of the service takes its own section and follows it through reloads (:class:`LiveSettings`).
"""

from migrator.settings.configuration import DEFAULT_PATH, REPEATED, SECTIONS, GuestRules, Settings
from migrator.settings.live import LiveSettings
from migrator.settings.loader import load, reload

__all__ = ["DEFAULT_PATH", "REPEATED", "SECTIONS", "GuestRules", "LiveSettings", "Settings", "load", "reload"]
