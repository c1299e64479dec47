"""The network between two hosts of a lab, as a site has it."""

from __future__ import annotations

from migrator.hosts.local import LocalAccess
from migrator.hosts.path_probe import PathProbe
from migrator.testing.network import LabHosts


def path_between(hosts: LabHosts, *more: str) -> PathProbe:
    """The network from alpha to beta.

    :param more: addresses of beta, beside the usual one.
    """
    here, there = (LocalAccess(host.name, host.prefix) for host in (hosts["alpha"], hosts["beta"]))
    return PathProbe(here=here, there=there, addresses=(hosts["beta"].address, *more))
