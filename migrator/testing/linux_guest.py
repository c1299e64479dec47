"""A small Linux guest with a network and Redis, and the bridges by which a client outside reaches it.

Its kernel and its files are made by ``scripts/linux-guest``. TCG before QEMU 9.0 loses what such a guest writes while
it moves: it takes a QEMU that does not.
"""

from __future__ import annotations

from pathlib import Path

from migrator.testing.lab import GuestMachine
from migrator.testing.network import LabHost

#: Where the client is, and where the guest.
CLIENT_ADDRESS, GUEST_ADDRESS = "10.219.78.1", "10.219.78.2"
#: What runs in the guest beside Redis, if anything.
WORKLOADS = ("redis", "memory", "compile")
MEMORY_BYTES = 192 << 20
_MADE = Path(".build/linux-guest")
_MAC, TAP, _BRIDGE = "52:54:00:6d:67:02", "tap-linux", "br-guests"


def files() -> tuple[Path, Path] | None:
    """Return the kernel and its initial files; ``None`` where they have not been made."""
    for root in (Path(__file__).parents[2], Path.cwd()):
        if (root / _MADE / "done").exists():
            return (root / _MADE / "vmlinuz").absolute(), (root / _MADE / "initrd").absolute()
    return None


def kernel_arguments(workload: str) -> str:
    """Return the kernel's command line."""
    return (
        f"console=ttyS0 quiet panic=1 tsc=unstable guest.address={GUEST_ADDRESS}/24 guest.workload={workload}"
    )


def machine(workload: str = "redis") -> GuestMachine:
    """Return the guest with something of :data:`WORKLOADS` in it; its tap is to be there.

    :raise FileNotFoundError: its files have not been made.
    """
    if (made := files()) is None:
        raise FileNotFoundError("there is no Linux guest: run scripts/linux-guest")
    kernel, initrd = made
    return GuestMachine(
        memory_bytes=MEMORY_BYTES,
        accelerator="tcg,tb-size=64",
        extra=(
            *("-kernel", str(kernel), "-initrd", str(initrd), "-append", kernel_arguments(workload)),
            *("-netdev", f"tap,id=net0,ifname={TAP},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,id=net0-device,netdev=net0,mac={_MAC},addr=0x5,romfile="),
        ),
    )


def join(client: LabHost, *hosts: LabHost) -> None:
    """Give each host a tap for the guest, on a bridge that leads to the client over a cable of its own.

    :raise NetworkError: when it cannot be made, or is there already.
    """
    client.run("ip", "link", "add", _BRIDGE, "type", "bridge")
    client.run("ip", "link", "set", _BRIDGE, "up")
    client.run("ip", "addr", "add", f"{CLIENT_ADDRESS}/24", "dev", _BRIDGE)
    for host in hosts:
        host.add_bridge(_BRIDGE)
        host.add_tap(TAP, bridge=_BRIDGE)
        cable = f"to-{host.name}"
        host.run(
            *("ip", "link", "add", "to-client", "type", "veth", "peer", "name", cable),
            *("netns", str(client.namespace)),
        )
        host.run("ip", "link", "set", "to-client", "up", "master", _BRIDGE)
        client.run("ip", "link", "set", cable, "up", "master", _BRIDGE)
