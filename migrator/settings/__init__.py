"""The configuration: typed sections, read from a TOML file, what it includes, and variables of the environment.

Each part of the service takes its own section and follows it through reloads (:class:`LiveSettings`).

- `files` reads the file and what it includes, `loader` puts the environment over it, `configuration` checks the whole;
  `live` is what is in force, `reloading` from when on each key is.
- Sections: `models`, `host_sections`, `policies`, `hooks`, `traces`. What they share: `section`, `values` (suffixes,
  paths, addresses), `matching` (patterns of guests), `words` (problems, said to whoever wrote it).
"""

from migrator.settings.configuration import DEFAULT_PATH, REPEATED, SECTIONS, GuestRules, Settings
from migrator.settings.live import LiveSettings
from migrator.settings.loader import load, reload

__all__ = ["DEFAULT_PATH", "REPEATED", "SECTIONS", "GuestRules", "LiveSettings", "Settings", "load", "reload"]
