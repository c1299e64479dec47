"""A guest's disks as they are, served to be compared with images of the past; and what was written to them since.

The guest goes on meanwhile. Nothing here needs the right to change QEMU: what is added is removed again, and is in
nobody's way (:data:`EXPORTS` has a name that a migration waits for).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from migrator.errors import CommandFailed, ComparisonFailed, QemuError
from migrator.qemu.drive_slots import read_inserted
from migrator.qemu.monitor import Monitor

#: Exports have names that begin so.
EXPORTS = "compared-"
_WRITTEN = "-written"


class DiskComparison:
    """Asks one QEMU for a comparison of its guest's disks."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    async def serve(self, devices: Mapping[str, str], path: str) -> Mapping[str, str]:
        """Let disks be read at a unix socket; return the names of the exports, by device.

        :param devices: the bitmap of each that notes what is written.
        :raise ComparisonFailed: there is no such bitmap any more.
        :raise CommandFailed: QEMU serves something else.
        """
        nodes = {}
        for device, bitmap in devices.items():
            inserted = await read_inserted(self._monitor, device)
            bitmaps = inserted.get("dirty-bitmaps") or []
            found = [each for each in bitmaps if each.get("name") == bitmap]
            if not found or not found[0]["recording"] or found[0].get("inconsistent"):
                raise ComparisonFailed(
                    f"what is written to disk {device} has not been noted since the switch"
                )
            nodes[device] = inserted["node-name"]
        await self._start_server({"type": "unix", "data": {"path": path}})
        exports = {device: f"{EXPORTS}{bitmap}" for device, bitmap in devices.items()}
        try:
            for device, name in exports.items():
                await self._export(name, nodes[device])
        except BaseException:
            await self.stop()
            raise
        return exports

    async def _start_server(self, address: Mapping[str, Any]) -> None:
        """Start it, in place of one that a comparison which was broken off has left, or of one that serves nothing."""
        try:
            await self._monitor.execute("nbd-server-start", {"addr": address})
        except CommandFailed:
            exports = await self._monitor.execute("query-block-exports")
            if any(not each["id"].startswith(EXPORTS) for each in exports):
                raise
            await self._monitor.execute("nbd-server-stop")
            await self._monitor.execute("nbd-server-start", {"addr": address})

    async def _export(self, name: str, node: str, *bitmaps: str) -> None:
        arguments = {"type": "nbd", "id": name, "name": name, "node-name": node, "writable": False}
        await self._monitor.execute(
            "block-export-add", {**arguments, **({"bitmaps": list(bitmaps)} if bitmaps else {})}
        )

    async def serve_written(self, device: str, bitmap: str) -> tuple[str, str]:
        """Serve what was written to a disk until now: return the export, and the bitmap there that has it.

        :raise QemuError: QEMU refuses, or does not answer.
        """
        node = str((await read_inserted(self._monitor, device))["node-name"])
        name, copy = f"{EXPORTS}{bitmap}{_WRITTEN}", f"{bitmap}{_WRITTEN}"
        await self._forget_copy(name, node, copy)
        await self._monitor.execute("block-dirty-bitmap-add", {"node": node, "name": copy, "disabled": True})
        await self._monitor.execute(
            "block-dirty-bitmap-merge", {"node": node, "target": copy, "bitmaps": [bitmap]}
        )
        await self._export(name, node, copy)
        return name, copy

    async def _forget_copy(self, export: str, node: str, copy: str) -> None:
        with contextlib.suppress(CommandFailed):
            await self._monitor.execute("block-export-del", {"id": export, "mode": "hard"})
        with contextlib.suppress(CommandFailed):
            await self._monitor.execute("block-dirty-bitmap-remove", {"node": node, "name": copy})

    async def stop(self, devices: Mapping[str, str] | None = None) -> None:
        """Serve nothing any more.

        :param devices: with their bitmaps, which are not needed any more either; ``None``: they go on.
        """
        with contextlib.suppress(QemuError):
            exports = await self._monitor.execute("query-block-exports")
            if any(each["id"].startswith(EXPORTS) for each in exports):
                await self._monitor.execute("nbd-server-stop")
            for device, bitmap in (devices or {}).items():
                node = (await read_inserted(self._monitor, device))["node-name"]
                for name in (f"{bitmap}{_WRITTEN}", bitmap):
                    with contextlib.suppress(CommandFailed):
                        await self._monitor.execute("block-dirty-bitmap-remove", {"node": node, "name": name})
