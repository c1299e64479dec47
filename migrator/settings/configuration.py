"""The whole configuration, checked: its sections, and what is looked up in several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from migrator.core.inventory import Guest, Host
from migrator.core.policy import Policy
from migrator.settings.hooks import HookSettings
from migrator.settings.host_sections import HostDefaults, HostSettings
from migrator.settings.models import (
    ControllerSettings,
    GroupSettings,
    GuestSettings,
    HttpSettings,
    LimitsSettings,
    MqttSettings,
    PlacementSettings,
    PolicySettings,
    SiteSettings,
    StoreSettings,
    TracesSettings,
)
from migrator.settings.policies import PolicyCatalogue
from migrator.settings.section import Section

#: Where the service's unit and ``migrator config check`` look for it.
DEFAULT_PATH = Path("/etc/migrator/migrator.toml")

#: Sections that are there once; the others are in :data:`REPEATED`.
SECTIONS: Mapping[str, type[Section]] = {
    "site": SiteSettings,
    "http": HttpSettings,
    "mqtt": MqttSettings,
    "store": StoreSettings,
    "controller": ControllerSettings,
    "traces": TracesSettings,
    "limits": LimitsSettings,
    "placement": PlacementSettings,
    "host_defaults": HostDefaults,
}
#: May be in included files too.
REPEATED: Mapping[str, type[Section]] = {
    "policies": PolicySettings,
    "hosts": HostSettings,
    "guests": GuestSettings,
    "hooks": HookSettings,
    "groups": GroupSettings,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that is configured, checked; see ``config/migrator.toml``."""

    #: Every file it was read from, the main one first.
    files: tuple[Path, ...] = ()
    site: SiteSettings = field(default_factory=SiteSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    mqtt: MqttSettings = field(default_factory=MqttSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    controller: ControllerSettings = field(default_factory=ControllerSettings)
    traces: TracesSettings = field(default_factory=TracesSettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    hosts: tuple[HostSettings, ...] = ()
    guests: tuple[GuestSettings, ...] = ()
    hooks: tuple[HookSettings, ...] = ()
    #: Those built in are not among them, unless they were given other values.
    policies: Mapping[str, Policy] = field(default_factory=dict)
    #: By their names.
    groups: Mapping[str, GroupSettings] = field(default_factory=dict)

    def policy(self, name: str) -> Policy:
        """The policy of that name, configured or built in.

        :raise UsageError: there is none; the message lists those there are.
        """
        return PolicyCatalogue(self.policies, tls=self.site.tls)(name)

    def host(self, name: str) -> HostSettings:
        """Return the configuration of that host.

        :raise KeyError: nothing.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)

    def inventory(self) -> list[Host]:
        """The hosts as the engine knows them before they have been looked at."""
        return [host.as_host() for host in self.hosts]

    def rules(self, guest: Guest) -> Guest:
        """The guest, with what the configuration says of it. Of several entries that match, the last one that gives a
        key counts. What keeps it from moving anyway stays said.
        """
        return GuestRules(self.guests)(guest)


@dataclass(frozen=True)
class GuestRules:
    """Rules of the ``[[guests]]`` entries for each guest; see :meth:`Settings.rules`."""

    entries: Sequence[GuestSettings]

    def __call__(self, guest: Guest) -> Guest:
        """Return the guest with what is said of it."""
        said: dict[str, Any] = {}
        for entry in self.entries:
            if entry.matches(guest):
                said |= entry.model_dump(exclude={"match"}, exclude_none=True)
        if said.pop("movable", True) is False and not guest.obstacle:
            said |= {"obstacle": "the configuration says movable = false", "obstacle_code": "not-movable"}
        return replace(guest, **said)
