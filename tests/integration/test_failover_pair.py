"""A card that QEMU unplugs for a migration, with a virtio-net card that takes over: a stand-in for hardware."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from migrator.testing import linux_guest
from migrator.testing.lab import Lab, Pair, binaries, until
from migrator.testing.process import LabQemu
from tests.command import direct, running
from tests.conftest import missing

_PAIR = (
    *("-device", "pcie-root-port,id=port0,chassis=1,slot=1"),
    *("-device", "pcie-root-port,id=port1,chassis=2,slot=2"),
    *("-netdev", "user,id=n0", "-netdev", "user,id=n1"),
    *("-device", "virtio-net-pci,id=standby,netdev=n0,bus=port0,failover=on,mac=52:54:00:6d:67:09,romfile="),
    *(
        "-device",
        "virtio-net-pci,id=fast,netdev=n1,bus=port1,failover_pair_id=standby,mac=52:54:00:6d:67:09,romfile=",
    ),
)


async def _has_card(qemu: LabQemu) -> bool:
    return '"fast"' in json.dumps(await qemu.query("query-pci"))


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_card_is_back_where_the_migration_fails_and_there_where_the_guest_arrives() -> None:
    if linux_guest.files() is None:
        missing("there is no Linux guest: run scripts/linux-guest")
    if (binary := binaries().get("10.0")) is None:
        missing("a Linux guest under TCG takes QEMU 10.0")
    plain = linux_guest.machine()
    machine = replace(plain, type="q35", extra=(*plain.extra[: plain.extra.index("-netdev")], *_PAIR))
    async with Lab() as lab:
        source = await lab.start(machine, binary=binary)
        await until(lambda: _has_card(source), what="the card that the guest has asked for", within=120.0)

        # The target dies once the guest has let go of it: it gets it again where it is.
        dies = await lab.start(machine, binary=binary, incoming=True)
        async with running(Pair(source, dies), "--max-bandwidth", "1MiB/s") as command:

            async def copies() -> bool:
                return await source.migration_status() == "active"

            await until(copies, what="a guest that has let go of its card", within=60.0)
            dies.kill()
            failed = await command.ended(within=60.0)
        assert (failed.code, failed.document["state"]) == (1, "failed")
        assert "unplug" in failed.actions

        # One that stands still cannot let go of it.
        waiting = await lab.start(machine, binary=binary, incoming=True)
        await source.query("stop")
        refused = await direct(Pair(source, waiting))
        assert refused.code == 3
        assert "card-stays" in [each["code"] for each in refused.document["findings"]]
        await source.query("cont")

        assert not await _has_card(waiting)
        ended = await direct(Pair(source, waiting), within=90.0)
        assert ended.code == 0, ended.document
        # It had the card again: QEMU asks for none that the guest has not.
        (told,) = [each for each in ended.document["decisions"] if each["action"] == "unplug"]
        assert "fast (standby takes over)" in told["reason"]
        await until(lambda: _has_card(waiting), what="the card where the guest is now", within=60.0)
