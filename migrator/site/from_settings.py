"""From the configuration to the ways, checks and starts of hosts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Self

from migrator.core.findings import OF_OUR_START, errors_first
from migrator.core.inventory import Guest
from migrator.core.migration.drivers import Driver
from migrator.core.model import Finding
from migrator.core.policy import Policy
from migrator.errors import HostError
from migrator.hosts.host_config import HostConfig, access, host_config
from migrator.ports import SourceQemu
from migrator.settings import Settings
from migrator.settings.host_sections import HostSettings
from migrator.settings.models import LimitsSettings
from migrator.site.connections import NOT_CONFIGURED, HostConnections
from migrator.site.destinations import Destinations
from migrator.site.host_checks import SiteChecks
from migrator.site.hosts import SiteHosts
from migrator.site.launch_config import LaunchConfig
from migrator.site.monitor_clients import MonitorClients


class _AllChecks:
    """Checks of both hosts, and of what starting a destination would say."""

    def __init__(self, connections: HostConnections, destinations: Destinations) -> None:
        self._hosts = SiteChecks(
            connections,
            replicated=destinations.replicates,
            facts=connections.facts,
            processes=connections.processes,
        )
        self._destinations = destinations

    async def check(
        self, guest: Guest, source: SourceQemu, target: str, policy: Policy
    ) -> tuple[Finding, ...]:
        """Changes nothing, starts nothing."""
        found = await self._hosts.check(guest, source, target, policy)
        started = await self._destinations.check(guest, source, target, policy)
        told = {each.code for each in started}
        if not self._destinations.replicates(guest, target):
            told |= OF_OUR_START
        return errors_first([*started, *(each for each in found if each.code not in told)])


class ConfiguredSite(SiteHosts):
    """The hosts of the configuration; it may be given another one of the same hosts.

    :param driver: who marks the QEMUs that are changed.
    :param lease_holds: see :class:`~migrator.qemu.claim.DriverClaim`.
    :param clients: where other controllers may take the place of this one.
    """

    def __init__(
        self,
        hosts: Sequence[HostSettings],
        limits: LimitsSettings,
        *,
        driver: Driver | None = None,
        lease_holds: Callable[[], bool] = lambda: True,
        clients: MonitorClients | None = None,
    ) -> None:
        self._launches: Mapping[str, LaunchConfig] = _launches(hosts)
        configs = _configs(hosts, limits)
        self.connections = HostConnections(
            {name: (access(each), each) for name, each in configs.items()},
            driver=driver,
            lease_holds=lease_holds,
            clients=clients,
        )
        self._destinations = Destinations(self.connections, how=self.how)
        super().__init__(
            self.connections,
            checker=_AllChecks(self.connections, self._destinations),
            launcher=self._destinations,
        )

    def driven_by(self, driver: Driver, lease_holds: Callable[[], bool]) -> Self:
        """Return the same site for whoever changes QEMUs under another right; all that is known of it is shared.

        :param lease_holds: see :class:`~migrator.qemu.claim.DriverClaim`.
        """
        connections = self.connections.driven_by(driver, lease_holds)
        destinations = self._destinations.over(connections)
        same = copy.copy(self)
        same.use(connections, checker=_AllChecks(connections, destinations), launcher=destinations)
        return same

    def how(self, guest: Guest, host: str) -> LaunchConfig:
        """How the guest's destination is started on a host.

        :raise HostError: no host of that name is configured: a controller that was here before may have had it.
        """
        config = self._launches.get(host)
        if config is None:
            raise HostError(host, NOT_CONFIGURED)
        return config.with_ports(guest.ports) if guest.ports else config

    def prepare(self, sections: tuple[Sequence[HostSettings], LimitsSettings]) -> Callable[[], None]:
        """Make ready to take another configuration over: what it returns does it, and cannot fail.

        :raise UsageError: it cannot be used.
        """
        hosts, limits = sections
        launches, configs = _launches(hosts), _configs(hosts, limits)
        launches = {name: _after(self._launches.get(name), new) for name, new in launches.items()}

        def take_over() -> None:
            self._launches = launches
            for config in configs.values():
                self.connections.configure(config)

        return take_over


def _launches(hosts: Sequence[HostSettings]) -> dict[str, LaunchConfig]:
    return {host.name: LaunchConfig(section=host) for host in hosts}


def _after(old: LaunchConfig | None, new: LaunchConfig) -> LaunchConfig:
    """Return the new launch with the old directories: what was started there is still ours."""
    if old is None:
        return new
    former = dict.fromkeys([old.directories, *old.former_directories])
    former.pop(new.directories, None)
    return replace(new, former_directories=tuple(former))


def _configs(hosts: Sequence[HostSettings], limits: LimitsSettings) -> dict[str, HostConfig]:
    return {host.name: host_config(host, hosts, limits) for host in hosts}


def make_site(
    settings: Settings,
    *,
    driver: Driver | None = None,
    lease_holds: Callable[[], bool] = lambda: True,
    clients: MonitorClients | None = None,
) -> ConfiguredSite:
    """Everything the engine asks of hosts; nothing is connected yet.

    :param driver: who marks the QEMUs that are changed.
    :param lease_holds: see :class:`~migrator.qemu.claim.DriverClaim`.
    :param clients: where other controllers may take the place of this one.
    """
    return ConfiguredSite(
        settings.hosts, settings.limits, driver=driver, lease_holds=lease_holds, clients=clients
    )
