"""Settings that the process that answers needs to begin, given by the one that started it."""

from __future__ import annotations

from dataclasses import dataclass

from migrator.mqtt import MqttConfig
from migrator.settings.models import HttpSettings, StoreSettings

#: Both processes say so often that they live, and say of the other that it does not after so many times.
ALIVE_SECONDS = 1.0
SILENT_TIMES = 3


@dataclass(frozen=True, kw_only=True)
class EntranceSettings:
    """The sections that it needs; it is not told the others, nor any password of theirs."""

    http: HttpSettings
    #: ``None``: no broker is configured.
    mqtt: MqttConfig | None
    store: StoreSettings
    #: Where people open the page, and read the runbook.
    page_url: str = ""
    runbook_url: str = ""
    log_level: str
    #: Log lines are for a machine.
    json_log: bool
