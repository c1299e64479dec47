"""From the configuration to the ways, checks and starts of hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from glob import escape

from migrator.core.findings import OF_OUR_START, errors_first
from migrator.core.inventory import Guest
from migrator.core.migration.drivers import Driver
from migrator.core.model import Finding
from migrator.core.policy import Policy
from migrator.hosts.site_config import HostConfig, SshConfig, access
from migrator.ports import SourceQemu
from migrator.settings import Settings
from migrator.settings.models import HostSettings, LimitsSettings
from migrator.site.connections import HostConnections
from migrator.site.destinations import Destinations
from migrator.site.host_checks import SiteChecks
from migrator.site.hosts import SiteHosts
from migrator.site.launch_config import LaunchConfig, Method

#: Where a destination's run directory is made if nothing else is configured and root starts it.
_RUN_DIRECTORY = "/run/migrator/guests"


class _AllChecks:
    """What hosts say against a target, and what starting a destination there would say."""

    def __init__(self, connections: HostConnections, destinations: Destinations) -> None:
        self._hosts = SiteChecks(connections, replicated=destinations.replicates)
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


def host_config(host: HostSettings, hosts: Sequence[HostSettings], limits: LimitsSettings) -> HostConfig:
    """What reaching it takes."""
    ssh = None
    if host.ssh is not None:
        ssh = SshConfig(
            host=host.ssh.host,
            port=host.ssh.port,
            user=host.ssh.user,
            key=host.key_file,
            known_hosts=host.known_hosts,
            max_sessions=limits.ssh_sessions,
            connect_seconds=limits.ssh_connect_timeout,
            keepalive_seconds=limits.ssh_keepalive,
        )
    return HostConfig(
        name=host.name,
        address=host.address,
        sockets=_sockets(host, hosts),
        processes=host.look_for == "processes",
        others=tuple(
            pattern
            for other in hosts
            if other.name != host.name and (other.ssh, other.prefix) == (host.ssh, host.prefix)
            for pattern in _sockets(other, hosts)
        ),
        qemu=host.qemu,
        prefix=host.prefix,
        ssh=ssh,
    )


def _sockets(host: HostSettings, hosts: Sequence[HostSettings]) -> tuple[str, ...]:
    """Where QMP sockets are looked for: as configured, and where the destinations that are started there have theirs.

    Else a guest would be out of sight once it has been moved. Not where another host on the same machine has that
    directory too: whose its guests are could not be told.
    """
    own = f"{escape(host.run_dir or _RUN_DIRECTORY)}/*/control.qmp"
    shared = any(
        (other.ssh, other.run_dir) == (host.ssh, host.run_dir) for other in hosts if other.name != host.name
    )
    return host.sockets if shared or own in host.sockets else (*host.sockets, own)


def launch_config(host: HostSettings) -> LaunchConfig:
    """How destinations are started there."""
    return LaunchConfig(
        method=Method(host.launch),
        template=host.template,
        attached=host.attached,
        binary=host.qemu,
        base_directory=host.run_dir,
        log_directory=host.log_dir,
        systemd=host.systemd,
        spare_ports=host.ports == "any",
        start_seconds=host.start_timeout,
    )


class ConfiguredSite(SiteHosts):
    """The hosts of the configuration; it may be given another one of the same hosts.

    :param driver: who marks the QEMUs that are changed.
    :param lease_holds: see :class:`~migrator.qemu.claim.DriverClaim`.
    """

    def __init__(
        self,
        hosts: Sequence[HostSettings],
        limits: LimitsSettings,
        *,
        driver: Driver | None = None,
        lease_holds: Callable[[], bool] = lambda: True,
    ) -> None:
        self._launches: Mapping[str, LaunchConfig] = _launches(hosts)
        configs = _configs(hosts, limits)
        self.connections = HostConnections(
            {name: (access(each), each) for name, each in configs.items()},
            driver=driver,
            lease_holds=lease_holds,
        )
        destinations = Destinations(self.connections, how=self.how)
        super().__init__(
            self.connections, checker=_AllChecks(self.connections, destinations), launcher=destinations
        )

    def how(self, guest: Guest, host: str) -> LaunchConfig:
        """How the guest's destination is started on a host."""
        config = self._launches[host]
        return replace(config, spare_ports=guest.ports == "any") if guest.ports else config

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
    return {host.name: launch_config(host) for host in hosts}


def _after(old: LaunchConfig | None, new: LaunchConfig) -> LaunchConfig:
    """What was started where it was configured before is still ours."""
    if old is None:
        return new
    former = dict.fromkeys([(old.base_directory, old.log_directory), *old.former_directories])
    former.pop((new.base_directory, new.log_directory), None)
    return replace(new, former_directories=tuple(former))


def _configs(hosts: Sequence[HostSettings], limits: LimitsSettings) -> dict[str, HostConfig]:
    return {host.name: host_config(host, hosts, limits) for host in hosts}


def make_site(
    settings: Settings, *, driver: Driver | None = None, lease_holds: Callable[[], bool] = lambda: True
) -> ConfiguredSite:
    """Everything the engine asks of hosts; nothing is connected yet.

    :param driver: who marks the QEMUs that are changed.
    :param lease_holds: see :class:`~migrator.qemu.claim.DriverClaim`.
    """
    return ConfiguredSite(settings.hosts, settings.limits, driver=driver, lease_holds=lease_holds)
