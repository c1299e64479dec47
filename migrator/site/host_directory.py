"""The hosts by name, as far as whoever asks them, or moves guests of libvirt between them, needs them."""

from __future__ import annotations

from typing import Protocol

from migrator.core.inventory import HostFacts
from migrator.core.process.image_paths import ImagePaths
from migrator.hosts.access import HostAccess
from migrator.hosts.host_config import HostConfig


class HostDirectory(Protocol):
    """The hosts by name."""

    def access(self, host: str) -> HostAccess:
        """Return the connection to a host.

        :raise HostError: when none of that name is configured.
        """

    def config(self, host: str) -> HostConfig:
        """Return what is configured of a host.

        :raise HostError: when none of that name is configured.
        """


def image_paths(connections: HostDirectory, source: str, target: str) -> ImagePaths:
    """Return where the images of one host are at another."""
    here, there = connections.config(source), connections.config(target)
    return ImagePaths(here=here.image_directories, there=there.image_directories)


class FactsReader(Protocol):
    """Facts of hosts; see :class:`migrator.site.recent_facts.RecentFacts`."""

    async def recent(self, host: str) -> HostFacts:
        """Return those of a moment ago.

        :raise HostError: the host cannot be asked.
        """


class ManagedHosts(HostDirectory, Protocol):
    """Hosts between which guests of libvirt move."""

    #: Role of every end held open, by host and place.
    held: dict[tuple[str, str], str]

    @property
    def facts(self) -> FactsReader:
        """Return what reads the facts of these hosts."""
