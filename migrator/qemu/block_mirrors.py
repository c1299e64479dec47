"""Mirrors of disks over NBD: what the source and the destination of a migration are told of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from migrator.addresses import host_port
from migrator.core.migration.disk_copies import MIRRORS
from migrator.core.preflight.non_migrated_state import OURS
from migrator.core.preflight.stream_tls import StreamTls
from migrator.core.process.command_line import path_of
from migrator.core.process.options import Value
from migrator.errors import CommandFailed, QemuError
from migrator.gathering import gather_to_end
from migrator.ports import GuestProcess
from migrator.qemu import stream_sockets, stream_tls
from migrator.qemu.claim import DriverClaim
from migrator.qemu.drive_slots import read_inserted
from migrator.qemu.monitor import Monitor

#: Which port an NBD server of QEMU listens at cannot be asked, so one is chosen; so many are tried.
_PORTS, _TRIES = range(49_152, 60_999), 40
#: Protocols whose node is exported instead of that of a raw image on it: zeroes deallocate what they are written to
#: there, which a raw one passes on only where it was opened with discard=unmap.
_FILES = frozenset({"file", "host_device"})
#: A mirror that is given up ends at once, unless its target's connection hangs; and so long with that cut.
_GIVE_UP_SECONDS, _CUT_SECONDS = 3.0, 5.0
_LOOK_SECONDS = 0.01
#: Ends the name of an export that is there for a moment.
_PASSING = "-passing"
_ENDED = frozenset({"concluded", "null"})


class EndpointMirroring:
    """Implements :class:`migrator.ports.DiskMirroring` for one endpoint."""

    def __init__(
        self, monitor: Monitor, claim: DriverClaim, process: Callable[[], GuestProcess | None]
    ) -> None:
        self._monitor, self._claim, self._process = monitor, claim, process
        #: The node of each bitmap that notes what is written.
        self._noted: dict[str, str] = {}
        #: What was opened here and is still there, so that it is closed without asking for it: nodes, and whether there
        #: is a server; ``None`` where that is not known.
        self._opened: list[str] | None = None
        self._serves = False

    # --- destination -------------------------------------------------------------------------------------------------

    async def serve(self, devices: dict[str, str], where: str, *, encrypted_for: str = "") -> str:
        kind, _, rest = where.partition(":")
        how: dict[str, Any] = {"max-connections": len(devices)}
        if encrypted_for:
            how |= stream_tls.nbd_server_arguments(encrypted_for)
        address = await self._listen(kind, rest, how)
        try:
            nodes = await gather_to_end(*(self._offer(device, name) for device, name in devices.items()))
            opened = [name for name, node in zip(devices.values(), nodes, strict=True) if node == name]
            await stream_sockets.answer_at_once(self._process(), address)
            self._opened, self._serves = opened, True
        except BaseException:
            with contextlib.suppress(QemuError):
                await self._claim.execute("nbd-server-stop")
                await self.remove_targets(MIRRORS)
            raise
        return address

    async def _offer(self, device: str, name: str) -> str:
        """Export a disk; return the node that is written."""
        node = await self._written_node(device, name)
        await self._export(node, name, writable=True)
        if node == name:
            await self._activate(device, name)
        return node

    async def _listen(self, kind: str, rest: str, how: Mapping[str, Any]) -> str:
        if kind == "unix":
            await self._start_server({"type": "unix", "data": {"path": rest}}, how)
            return f"unix:{rest}"
        import secrets  # noqa: PLC0415 - slow, and only where disks are copied

        host, _ = host_port(f"{rest}:1")
        for attempt in range(_TRIES):
            port = secrets.choice(_PORTS)
            try:
                await self._start_server({"type": "inet", "data": {"host": host, "port": str(port)}}, how)
            except CommandFailed as error:
                if "in use" not in error.description or attempt == _TRIES - 1:
                    raise
            else:
                return f"tcp:{rest}:{port}"
        raise AssertionError("the last attempt raises")

    async def _start_server(self, address: Mapping[str, Any], how: Mapping[str, Any]) -> None:
        await self._claim.execute("nbd-server-start", {"addr": address, **how})

    async def _export(self, node: str, name: str, *, writable: bool) -> None:
        arguments = {"type": "nbd", "id": name, "name": name, "node-name": node, "writable": writable}
        await self._claim.execute("block-export-add", arguments)

    async def _activate(self, device: str, name: str) -> None:
        """Have QEMU take a disk that is written through another node for its own now, while it is empty.

        Else it does so once the guest has arrived and stands still, and drops all that the host's page cache has of it
        by then: 14 ms for 256 MiB. What is exported it takes at once, and it keeps it when the export ends.
        """
        passing = f"{name}{_PASSING}"
        with contextlib.suppress(CommandFailed):  # it is then later
            node = str((await read_inserted(self._monitor, device))["node-name"])
            await self._export(node, passing, writable=False)
            await self._claim.execute("block-export-del", {"id": passing, "mode": "hard"})

    async def stop_serving(self) -> None:
        opened, served = self._opened, self._serves
        self._opened, self._serves = None, False  # whatever becomes of it: then it is asked for
        if opened is None:
            exports = await self._monitor.execute("query-block-exports")
            opened = await self._nodes(MIRRORS)
            served = any(each["id"].startswith(MIRRORS) for each in exports)
        stop = [("nbd-server-stop", None)] if served else []
        # That one is answered once its exports are closed; a node that is still exported is not deleted by QEMU.
        answers = await self._in_order(
            *stop,
            ("query-block-exports", None),
            *(("blockdev-del", {"node-name": node}) for node in opened),
        )
        if left := [each["id"] for each in answers[len(stop)] if each["id"].startswith(MIRRORS)]:
            raise CommandFailed(
                self._monitor.name, "nbd-server-stop", "GenericError", f"{', '.join(left)} is still exported"
            )

    async def on_volumes(self, devices: Collection[str]) -> frozenset[str]:
        nodes = await self._monitor.execute("query-named-block-nodes", {"flat": True})
        volumes = {node["file"] for node in nodes if node["drv"] == "host_device"}
        inserted = {device: await read_inserted(self._monitor, device) for device in devices}
        return frozenset(
            device for device, at in inserted.items() if at["file"] in volumes and at["drv"] != "qcow2"
        )

    async def prepare_bitmaps(self, devices: Mapping[str, str]) -> None:
        for device, name in devices.items():
            node = str((await read_inserted(self._monitor, device))["node-name"])
            arguments = {"node": node, "name": name, "disabled": True}
            await self._claim.execute("block-dirty-bitmap-add", arguments)
            self._noted[name] = node

    async def note_writes(self, devices: Mapping[str, str]) -> None:
        for device, name in devices.items():
            if name not in self._noted:
                self._noted[name] = str((await read_inserted(self._monitor, device))["node-name"])
            await self._claim.execute("block-dirty-bitmap-enable", {"node": self._noted[name], "name": name})

    async def _written_node(self, device: str, name: str) -> str:
        """Return the node that is written so that the device's contents change, and that keeps them sparse.

        A raw image in a file is opened a second time for that: zeroes deallocate what they are written to then, however
        the guest's disk was opened. QEMU uses that for nothing before the guest has arrived, and this is closed before.
        """
        inserted = await read_inserted(self._monitor, device)
        if inserted["drv"] in ("raw", "luks"):
            nodes = await self._monitor.execute("query-named-block-nodes", {"flat": True})
            size, path = inserted["image"]["virtual-size"], path_of(inserted["file"])
            encrypted = inserted["drv"] == "luks"  # it is written as it is, beside whoever has its keys
            beneath = [
                node
                for node in nodes
                if node["drv"] in _FILES
                and (node["file"] == inserted["file"] or (encrypted and path_of(node["file"]) == path))
                and not node["ro"]
                # Of one with an offset or a size of its own the contents are a part only.
                and (encrypted or node.get("image", {}).get("virtual-size") == size)
            ]
            if len(beneath) == 1:
                return await self._second(beneath[0], name) or str(beneath[0]["node-name"])
        return str(inserted["node-name"])

    async def _second(self, beneath: Mapping[str, Any], name: str) -> str:
        """Open the file of a node a second time; empty where that cannot be."""
        if beneath["drv"] != "file" or not beneath["file"].startswith("/"):
            return ""
        cache = {key: beneath["cache"][key] for key in ("direct", "no-flush")}
        node = {
            "driver": "file",
            "node-name": name,
            "filename": beneath["file"],
            "cache": cache,
            "discard": "unmap",
        }
        try:
            await self._claim.execute("blockdev-add", node)
        except CommandFailed:
            return ""  # it has given up the right to it, or is confined
        return name

    # --- source ------------------------------------------------------------------------------------------------------

    async def begin(
        self,
        device: str,
        name: str,
        where: str,
        *,
        whole: bool,
        based: bool = False,
        bytes_per_second: int = 0,
        encrypted_for: str = "",
        tls: StreamTls | None = None,
    ) -> None:
        inserted = await read_inserted(self._monitor, device)
        kind, _, rest = where.partition(":")
        if kind == "unix":
            server = {"type": "unix", "path": rest}
        else:
            host, port = host_port(rest)
            server = {"type": "inet", "host": host, "port": str(port)}
        node = {
            "driver": "nbd",
            "node-name": name,
            "server": server,
            "export": name,
            "discard": "unmap",
            "detect-zeroes": "unmap",
        }
        if tls is not None:
            node |= stream_tls.nbd_client_options(encrypted_for, tls)
        if inserted["drv"] == "luks":
            # The target has the header already: what goes there is what is in the image, and not what it says.
            secret = Value(inserted["file"].removeprefix("json:"), first="").flat().get("key-secret", "")
            beneath = {**node, "node-name": _link(name), "detect-zeroes": "off"}
            node = {"driver": "luks", "node-name": name, "key-secret": secret, "file": beneath}
        await self._claim.execute("blockdev-add", node)
        self._opened = [*(self._opened or ()), name]
        nodes = await self._monitor.execute("query-named-block-nodes", {"flat": True})
        # A volume that was made for it has what was there before, where a new file has nothing.
        volume = any(node["drv"] == "host_device" and node["file"] == inserted["file"] for node in nodes)
        arguments = {
            "job-id": name,
            "device": inserted["node-name"],
            "target": name,
            "auto-dismiss": False,
            "speed": bytes_per_second,
            # A whole copy begins with zeroes for all of the target; without anything beneath it the top is the same.
            "sync": "full"
            if whole or volume or ("backing-image" in inserted["image"] and not based)
            else "top",
            # Never write-blocking: there a target that cannot be written to any more corrupted the heap of QEMU 7.2 and
            # 10.0 now and then, and the source died of it; and a silent network holds up the guest's writes.
            "copy-mode": "background",
        }
        await self._claim.execute("blockdev-mirror", arguments)

    async def set_speed(self, name: str, bytes_per_second: int) -> None:
        await self._claim.execute("block-job-set-speed", {"device": name, "speed": bytes_per_second})

    async def end(self, name: str) -> None:
        await self._claim.execute("block-job-cancel", {"device": name, "force": False})

    async def remove_targets(self, prefix: str) -> None:
        known, self._opened = self._opened, None
        opened = await self._nodes(prefix) if known is None else [n for n in known if n.startswith(prefix)]
        if opened:
            await self._in_order(*(("blockdev-del", {"node-name": node}) for node in opened))

    async def give_up(self, prefix: str) -> None:
        self._opened = None  # what was begun may be there without an answer
        for name in await self._at_work(prefix):
            with contextlib.suppress(CommandFailed):  # it has ended meanwhile
                await self._claim.execute("block-job-cancel", {"device": name, "force": True})
        if left := await self._until_ended(prefix, _GIVE_UP_SECONDS):
            for name in [*left, *map(_link, left)]:
                instance = {"type": "block-node", "node-name": name}
                with contextlib.suppress(CommandFailed):  # it has no connection any more
                    await self._monitor.execute("yank", {"instances": [instance]}, oob=True)
            if left := await self._until_ended(prefix, _CUT_SECONDS):
                raise CommandFailed(
                    self._monitor.name,
                    "block-job-cancel",
                    "GenericError",
                    f"mirror {', '.join(left)} does not end",
                )
        await self.remove_targets(prefix)
        for job in await self._monitor.execute("query-jobs"):
            if job["id"].startswith(prefix):
                await self._claim.execute("job-dismiss", {"id": job["id"]})

    async def _nodes(self, prefix: str) -> list[str]:
        nodes = await self._monitor.execute("query-named-block-nodes", {"flat": True})
        return [node["node-name"] for node in nodes if node["node-name"].startswith(prefix)]

    async def _in_order(self, *commands: tuple[str, Mapping[str, Any] | None]) -> list[Any]:
        """Execute commands in this order in one round trip, as the guest may stand still; return their answers.

        :raise QemuError: the first error, once each of them was answered.
        """
        await self._claim.ensure()
        return await gather_to_end(
            *(self._monitor.execute(command, arguments) for command, arguments in commands)
        )

    async def _at_work(self, prefix: str) -> list[str]:
        jobs = await self._monitor.execute("query-jobs")
        return [job["id"] for job in jobs if job["id"].startswith(prefix) and job["status"] not in _ENDED]

    async def _until_ended(self, prefix: str, seconds: float) -> list[str]:
        """Wait for the end of all; return those that have not ended by then."""
        left = await self._at_work(prefix)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while left:
                    await asyncio.sleep(_LOOK_SECONDS)
                    left = await self._at_work(prefix)
        return left


def _link(name: str) -> str:
    """Return the name of the node that leads to a mirror's target where that is encrypted; it goes with that."""
    return f"{OURS}link-{name.removeprefix(MIRRORS)}"
