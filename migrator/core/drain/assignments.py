"""The choice of the controller that drives a migration: of those that reach both hosts the least busy one. Pure."""

from __future__ import annotations

from collections.abc import Mapping


def choose_driver(
    own: str,
    loads: Mapping[str, int],
    hosts: Mapping[str, frozenset[str]],
    *,
    needs: frozenset[str],
    group: str = "",
) -> str:
    """Return the name of the controller that shall drive a migration; of several the planner first, as it is nearest.

    :param own: the planner, which reaches all hosts.
    :param loads: how many migrations each drives.
    :param hosts: of each other controller that may be given one, the hosts that it is configured for.
    :param needs: the hosts of the migration.
    :param group: who drives others of its group: that one, where it can; empty: nobody does.
    """
    able = [own, *(name for name, its in hosts.items() if needs <= its)]
    if group in able:
        return group
    return min(able, key=lambda name: (loads.get(name, 0), name != own, name))
