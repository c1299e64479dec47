"""Names of ours for guests whose QEMU was started without a uuid.

The first process of such a guest names it: whoever can see that process comes to the same name, and nothing has to be
changed for that. When the guest moves, the QEMU that it moves into is marked with the name, and so is each after it.
One that we start has the mark on its command line, where it is seen when QEMU cannot be asked, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from migrator.errors import CommandFailed
from migrator.qemu import marks
from migrator.qemu.monitor import Monitor

#: Name of the mark.
_MARK = "guest"
_OURS = re.compile("guest-[0-9a-f]{16}")
NO_UUID = "00000000-0000-0000-0000-000000000000"


def process_name(identity: Mapping[str, Any]) -> str:
    """Return the name of a guest whose first process this is; empty where the process is not known.

    :param identity: as of :attr:`migrator.ports.GuestProcess.identity`.
    """
    words = [str(identity.get(key, "")) for key in ("boot_id", "pid", "start_time")]
    if not all(words):
        return ""
    return "guest-" + hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


async def read_name(monitor: Monitor, *, timeout: float = 5.0) -> str:
    """Read the name that a QEMU was marked with when its guest moved into it; empty where it was not.

    :raise QemuError: it cannot be asked.
    """
    name = (await marks.read(monitor, _MARK, timeout=timeout)).get(_MARK, "")
    return name if _OURS.fullmatch(name) else ""


async def _name_of(source: Monitor, identity: Mapping[str, Any]) -> str:
    """Return our name for the guest at the source; empty where it has a uuid, or its process is not known."""
    try:
        uuid = await source.execute("query-uuid")
    except CommandFailed:
        uuid = {}
    if uuid.get("UUID", NO_UUID) != NO_UUID:
        return ""
    return await read_name(source) or process_name(identity)


async def options(source: Monitor, identity: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options that mark a QEMU started for the guest at the source; empty where that guest has a uuid.

    :param identity: of the source's process.
    :raise QemuError: it cannot be asked.
    """
    name = await _name_of(source, identity)
    return marks.option(_MARK, name) if name and await marks.possible(source) else ()


async def pass_on_name(source: Monitor, identity: Mapping[str, Any], destination: Monitor) -> None:
    """Mark the destination with the name of the guest at the source, where that has no uuid.

    A QEMU that cannot have marks is left without: its guest has another name after the move.

    :param identity: of the source's process.
    :raise QemuError: one of them cannot be asked.
    """
    name = await _name_of(source, identity)
    if not name:
        return
    try:
        if not await marks.add(destination, _MARK, name) and await read_name(destination) != name:
            await marks.remove(destination, _MARK)  # it waited for another guest, in vain
            await marks.add(destination, _MARK, name)
    except CommandFailed:
        pass  # before 4.0 there is no such object
