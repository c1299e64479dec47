"""Disks of the bare script: mirrored before memory is sent, ended with the guest standing still.

What it keeps of the rules of disks: a mirror is ended only once the guest stands still, its result is read, and nobody
can write to the destination's images any more before the switch goes on.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from migrator.machine import LocalProcess
from migrator.testing.lab import Pair
from migrator.testing.raw_qmp import RawMonitor

_PORTS = range(49_152, 60_999)
_PATIENCE_SECONDS = 120.0


class NotCopied(RuntimeError):
    """A disk did not come through; nothing was undone."""


async def mirror(
    pair: Pair, source: RawMonitor, destination: RawMonitor, devices: Sequence[str], listen: str
) -> list[str]:
    """Have disks copied; return the names of their mirrors once the copies are the same and are kept so.

    :param devices: ids of the guest's disks, the largest first.
    :param listen: ``tcp:ADDR:0``.
    """
    host, port = listen.split(":")[1], str(secrets.choice(_PORTS))
    address = {"type": "inet", "data": {"host": host, "port": port}}
    here, there = await asyncio.gather(_nodes(source), _nodes(destination))
    names = [f"disk-{number}" for number in range(len(devices))]
    exports = [
        {"type": "nbd", "id": name, "name": name, "node-name": there[device], "writable": True}
        for name, device in zip(names, devices, strict=True)
    ]
    await destination.execute_all(
        [("nbd-server-start", {"addr": address}), *(("block-export-add", each) for each in exports)]
    )
    await _answer_at_once(pair.destination.pid, int(port))
    for name, device in zip(names, devices, strict=True):
        server = {"type": "inet", "host": host, "port": port}
        job = {"job-id": name, "device": here[device], "target": name, "auto-dismiss": False}
        await source.execute_all(
            [
                ("blockdev-add", {"driver": "nbd", "node-name": name, "server": server, "export": name}),
                ("blockdev-mirror", job | {"sync": "top", "copy-mode": "background"}),
            ]
        )
    await _status(source, names, "ready")
    return names


async def end(source: RawMonitor, destination: RawMonitor, names: Sequence[str]) -> None:
    """End the mirrors, with the guest standing still, and let nobody write to the destination's disks any more.

    :raise NotCopied: one has failed.
    """
    await source.execute_all([("block-job-cancel", {"device": name, "force": False}) for name in names])
    await _status(source, names, "concluded")
    jobs = {job["id"]: job for job in await source.execute("query-jobs")}
    if failed := [name for name in names if jobs[name]["status"] != "concluded" or "error" in jobs[name]]:
        raise NotCopied(f"{failed}: {jobs}")
    await asyncio.gather(
        source.execute_all([("blockdev-del", {"node-name": name}) for name in names]),
        destination.execute("nbd-server-stop"),
    )


async def _nodes(monitor: RawMonitor) -> dict[str, str]:
    """Return the node of each disk, by the id of its device."""
    return {
        block["qdev"].removeprefix("/machine/peripheral/").split("/")[0]: block["inserted"]["node-name"]
        for block in await monitor.execute("query-block")
        if block.get("qdev") and block.get("inserted")
    }


async def _answer_at_once(pid: int, port: int) -> None:
    """Have the disk server not wait for TCP's delayed acknowledgements, as migrator has it."""
    process = LocalProcess(pid)
    try:
        await process.ask_sockets({"do": "answer_at_once", "port": port})
    finally:
        process.close()


async def _status(source: RawMonitor, names: Sequence[str], wanted: str) -> None:
    """Wait for the events that say this of each job."""
    left = set(names)
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while left:
            told = (await source.event("JOB_STATUS_CHANGE", within=_PATIENCE_SECONDS))["data"]
            if told["id"] in left and told["status"] == wanted:
                left.discard(told["id"])
            elif told["id"] in left and told["status"] in ("aborting", "null"):
                raise NotCopied(f"{told['id']} is {told['status']}, and was to be {wanted}")
