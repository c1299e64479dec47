"""Taps that the two QEMUs of ``migrator direct`` have open, and the interfaces that they hang on."""

from __future__ import annotations

from pathlib import Path

from migrator.cli.over_ssh import OverSsh
from migrator.core.process.guest_network import GuestTaps
from migrator.qemu.address import Address


class DirectGuestNetworks:
    """Implements :class:`migrator.ports.GuestNetworks` for ends that are named by their addresses."""

    def __init__(self, over_ssh: OverSsh, *addresses: Address) -> None:
        self._over_ssh = over_ssh
        self._addresses = {str(address): address for address in addresses}

    async def guest_taps(self, host: str, pid: int) -> GuestTaps:
        """Read the taps of a process: over SSH for another machine; no command is run for one here that has no tap.

        :raise HostError: the host cannot be asked.
        """
        address = self._addresses[host]
        if address.kind != "ssh" and not (opened := _opened(pid)):
            return GuestTaps(taps=None if opened is None else ())
        from migrator.hosts.guest_network import read_guest_taps  # noqa: PLC0415 - few guests of this command have a tap
        from migrator.hosts.local import LocalAccess  # noqa: PLC0415 - likewise

        if address.kind == "ssh":
            access = self._over_ssh.access(address)
            return (await read_guest_taps(access, [pid]))[pid]
        elsewhere = _in_another_network(pid)
        if elsewhere is None:
            return GuestTaps()
        local = LocalAccess(host, ("nsenter", f"--net=/proc/{pid}/ns/net", "--") if elsewhere else ())
        return (await read_guest_taps(local, [pid]))[pid]


def _opened(pid: int) -> list[str] | None:
    """Return the taps that a process of this machine has open; ``None`` where that cannot be read."""
    taps = []
    try:
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            text = path.read_text(encoding="utf-8", errors="replace")
            taps += [line.split()[1] for line in text.splitlines() if line.startswith("iff:")]
    except OSError:
        return None  # no right to, or it has ended
    return taps


def _in_another_network(pid: int) -> bool | None:
    """Tell whether its network namespace is not ours; ``None`` where that cannot be read."""
    own, its = Path("/proc/self/ns/net"), Path(f"/proc/{pid}/ns/net")
    try:
        return own.readlink() != its.readlink()
    except OSError:
        return None
