"""Guests of an evacuation that are saved into files, as nothing else is left. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from migrator.core.drain.actions import SaveGuest
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.snapshot import SiteSnapshot
from migrator.core.drain.states import GuestStanding
from migrator.core.inventory import Guest, Host
from migrator.core.managed_guest import LIBVIRT
from migrator.core.policy import Policy


def saved_into(guest: Guest, host: Host | None, policy: Policy, evacuation: str) -> str:
    """Return the path of the file that a guest is saved into if it cannot leave; empty where it stays.

    :param host: the one that it is on.
    """
    if not policy.saves or guest.obstacle or host is None or not host.saved_dir:
        return ""
    if guest.managed_by == LIBVIRT:
        return ""  # libvirt's own files are for virsh
    # Names of guests are never part of a path.
    name = re.sub(r"[^A-Za-z0-9._-]", "_", guest.key)[:64]
    return f"{host.saved_dir.rstrip('/')}/{name}-{evacuation}.state"


def guests_to_save(run: Evacuation, snapshot: SiteSnapshot) -> Iterator[SaveGuest]:
    """Yield those of an evacuation that may be saved, once nobody of it waits or is under way."""
    if run.kind != "evacuate" or run.closing is not None:
        return
    if run.entries.count(GuestStanding.WAITING, GuestStanding.MIGRATING):
        return
    for entry in run.entries.at(GuestStanding.NO_TARGET, GuestStanding.SET_ASIDE):
        path = _path(entry, run, snapshot)
        if path:
            yield SaveGuest(
                evacuation=run.id,
                guest=entry.guest,
                path=path,
                reason=f"its policy has it saved into {path}, as it cannot leave: {entry.reason}",
            )


def _path(entry: Entry, run: Evacuation, snapshot: SiteSnapshot) -> str:
    key, policy = entry.guest.key, snapshot.policies.of(entry.guest, run.policy_of(entry.guest.key))
    if entry.saving or key in snapshot.live or key in snapshot.coming:
        return ""
    return saved_into(entry.guest, snapshot.hosts.get(run.host), policy, run.id)
