"""What somebody set in the source while it ran is set at the destination too, before the guest runs there or soon."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from migrator.core.model import State
from migrator.core.policy import builtin
from migrator.qemu.runtime_state import carry_traces
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, RawMonitor, until
from tests.conftest import MakePair
from tests.integration.test_under_way import Move

BALLOON = "/machine/peripheral/balloon"
DISK = "/machine/peripheral/disk0/virtio-backend"
MACHINE = GuestMachine(
    habit=Habit(region_bytes=16 << 20, bytes_per_second=4 << 20),
    extra=(
        *("-object", "throttle-group,id=slow", "-object", "iothread,id=io0"),
        *(
            "-device",
            "virtio-balloon-pci,id=balloon",
            "-netdev",
            "user,id=net0",
            "-device",
            "e1000,netdev=net0",
        ),
        *(
            "-device",
            "virtio-blk-pci,id=second,drive=none0",
            "-drive",
            "if=none,id=none0,driver=null-co,size=1M",
        ),
    ),
)


async def set_everything(qemu: LabQemu) -> None:
    async with qemu.monitor() as monitor:

        async def put(path: str, name: str, value: Any) -> None:
            await monitor.execute("qom-set", {"path": path, "property": name, "value": value})

        await put("/objects/slow", "limits", {"bps-total": 5_000_000, "iops-read": 100})
        await put("/objects/io0", "poll-max-ns", 0)
        await put(BALLOON, "guest-stats-polling-interval", 7)
        await put("/machine/peripheral/disk0", "bootindex", 3)
        for node, threshold in (("disk0", 4096), (await nameless(monitor), 8192)):
            arguments = {"node-name": node, "write-threshold": threshold}
            await monitor.execute("block-set-write-threshold", arguments)
        await monitor.execute("block-latency-histogram-set", {"id": DISK, "boundaries-read": [10, 200]})
        await monitor.execute("migrate-set-parameters", {"announce-rounds": 3, "xbzrle-cache-size": 1 << 20})
        await monitor.execute("trace-event-set-state", {"name": "vm_state_notify", "enable": True})


async def nameless(monitor: Any) -> str:
    """The node that QEMU named: of the second disk."""
    blocks = await monitor.execute("query-block")
    (name,) = [each["inserted"]["node-name"] for each in blocks if each["device"] == "none0"]
    return str(name)


async def everything(qemu: LabQemu) -> dict[str, Any]:
    async with qemu.monitor() as monitor:

        async def value(path: str, name: str) -> Any:
            return await monitor.execute("qom-get", {"path": path, "property": name})

        nodes = {
            each["node-name"]: each["write_threshold"]
            for each in await monitor.execute("query-named-block-nodes", {"flat": True})
        }
        statistics = {each.get("qdev"): each["stats"] for each in await monitor.execute("query-blockstats")}
        parameters = await monitor.execute("query-migrate-parameters")
        capabilities = await monitor.execute("query-migrate-capabilities")
        forwards = await monitor.execute("human-monitor-command", {"command-line": "info usernet"})
        return {
            "limits": await value("/objects/slow", "limits"),
            "polling": await value("/objects/io0", "poll-max-ns"),
            "statistics": await value(BALLOON, "guest-stats-polling-interval"),
            "boot": await value("/machine/peripheral/disk0", "bootindex"),
            "thresholds": (nodes["disk0"], nodes[await nameless(monitor)]),
            "histogram": statistics[DISK]["rd_latency_histogram"]["boundaries"],
            "parameters": {name: parameters[name] for name in ("announce-rounds", "xbzrle-cache-size")},
            "return-path": [each["state"] for each in capabilities if each["capability"] == "return-path"],
            "forwards": "HOST_FORWARD" in forwards,
        }


async def test_all_that_can_be_read_is_the_same_after_a_move(
    pair: MakePair, lab: Lab, across: tuple[Path, Path]
) -> None:
    made = await pair(across, machine=MACHINE)
    await set_everything(made.source)
    before = await everything(made.source)
    async with Move(made, builtin("gentle").but(max_bandwidth_bytes_per_second=16 << 20)) as move:
        await move.migration.check()
        assert await carry_traces(move.source.monitor, move.destination.monitor) == []
        enabled = await move.destination.monitor.execute("trace-event-get-state", {"name": "vm_state_notify"})
        running = asyncio.create_task(move.migration.run())
        await until(lambda: State.PRECOPY in move.states, what="it copies")
        # The destination's monitor is ours, and another is there for whoever looks.
        waiting = await everything(made.destination)
        assert (waiting["limits"], waiting["polling"]) == (before["limits"], 0)
        async with made.source.monitor() as monitor:
            again = {"path": "/objects/io0", "property": "poll-grow", "value": 4}
            await monitor.execute("qom-set", again)
        result = await running
    assert result.state is State.COMPLETED, result.error
    assert [each["state"] for each in enabled] == ["enabled"]
    assert not [each.message for each in result.findings if each.code == "not-put-back"]
    after = await everything(made.destination)
    assert after == before
    async with made.destination.monitor() as monitor:
        grown = await monitor.execute("qom-get", {"path": "/objects/io0", "property": "poll-grow"})
    assert grown == 4, "what was set while memory was copied"
    assert await lab.counting() == [made.destination]


async def test_what_the_destination_does_not_take_is_named(
    pair: MakePair, lab: Lab, one_crossing: tuple[Path, Path]
) -> None:
    made = await pair(one_crossing, machine=MACHINE)
    async with made.source.monitor() as monitor:
        add = {"command-line": "hostfwd_add net0 tcp:127.0.0.1:0-:22"}
        await monitor.execute("human-monitor-command", add)
    async with Move(made, builtin("gentle")) as move:
        await move.migration.check()
        result = await move.migration.run()
    assert result.state is State.COMPLETED, result.error
    (said,) = [each.message for each in result.findings if each.code == "not-put-back"]
    assert "forwarded port net0 tcp:127.0.0.1:" in said  # which the source had on the same machine
    assert await lab.counting() == [made.destination]


#: What QEMU sends by itself after a migration: 5 rounds, 50 to 450 ms apart.
ANNOUNCED_SECONDS = 1.5


async def announce(monitor: RawMonitor) -> None:
    once = {"initial": 1, "max": 1, "rounds": 1, "step": 0}
    await monitor.execute("announce-self", once)
    await asyncio.sleep(0.05)  # QEMU's own timer, of a millisecond; a frame too many is told by the count


def frames(dump: Path) -> int:
    """Frames in a capture file."""
    data, count, at = dump.read_bytes(), 0, 24
    while at < len(data):
        at += 16 + int.from_bytes(data[at + 8 : at + 12], "little")
        count += 1
    return count


async def test_links_that_are_down_stay_down(
    pair: MakePair, lab: Lab, one_crossing: tuple[Path, Path]
) -> None:
    """In the streams of these cards; seen by what QEMU would send through them."""
    cards = ("virtio-net-pci", "e1000", "e1000e", "rtl8139")
    extra = [
        word
        for n, card in enumerate(cards)
        for word in (
            "-netdev",
            f"hubport,id=net{n},hubid={n}",
            "-device",
            f"{card},id=nic{n},netdev=net{n},addr={n + 16:#x}",
        )
    ]
    made = await pair(one_crossing, machine=GuestMachine(extra=tuple(extra)))
    async with made.source.monitor() as monitor:
        for n in range(len(cards)):
            await monitor.execute("set_link", {"name": f"nic{n}", "up": False})
    async with Move(made, builtin("gentle")) as move:
        await move.migration.check()
        assert (await move.migration.run()).state is State.COMPLETED
    dumps = [lab.directory / f"{card}.pcap" for card in cards]
    await asyncio.sleep(ANNOUNCED_SECONDS)
    async with made.destination.monitor() as monitor:
        for n, dump in enumerate(dumps):
            taken = {"qom-type": "filter-dump", "id": f"dump{n}", "netdev": f"net{n}", "file": str(dump)}
            await monitor.execute("object-add", taken)
        await announce(monitor)
        for n in range(len(cards)):
            await monitor.execute("set_link", {"name": f"nic{n}", "up": True})
        await announce(monitor)
        await until(lambda: all(frames(dump) for dump in dumps), what="a frame of every card")
    assert {dump.stem: frames(dump) for dump in dumps} == dict.fromkeys(cards, 1)
