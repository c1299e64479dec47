"""Cancel of a stream at its source; one of several channels needs more than to be told.

QEMU (7.2 and 10.0) may never come to the end of that. Its destination ends as soon as it hears of the cancel; where a
channel finds that while QEMU waits for each of them to have sent what it has, QEMU waits for ever: the guest runs on,
``cancelling`` stays, and the process cannot be moved any more. So the stream is held back first, and the cancel sent in
the pause between two of its bursts. Where a channel cannot send, because the destination or the network stands still,
QEMU waits for that as well; what breaks that off is a yank.
"""

from __future__ import annotations

import asyncio
from typing import Any

from migrator import logs
from migrator.errors import QemuError, TimedOut
from migrator.qemu.monitor import Monitor

#: A cancel that is not answered, or does not end, for so long is followed by a yank.
_ANSWER_SECONDS, _END_SECONDS = 2.0, 1.0
#: QEMU sends what its limit allows in a tenth of a second at once: with a tiny one it rests for nearly all of that. It
#: is taken to rest after so many looks that show the same, so far apart; and it is waited for no longer than that.
_TINY_BYTES_PER_SECOND, _LOOKS, _LOOK_SECONDS, _REST_SECONDS = 4096, 2, 0.015, 0.5


async def cancel(monitor: Monitor, *, in_channels: bool | None) -> None:
    """Cancel the migration, and break its stream off out of band where it does not come to its end.

    :param in_channels: whether memory has channels of its own; ``None``: it is not known, and QEMU is asked.
    :raise QemuError: QEMU cannot be told.
    """
    try:
        if in_channels is None:
            in_channels = await _has_channels(monitor)
        if in_channels:
            await _until_at_rest(monitor)
    except QemuError as error:  # as it may not answer at all, which is no reason to leave it at that
        logs.logger().info("a stream could not be held back before its cancel", why=str(error))
    try:
        await monitor.execute("migrate_cancel", timeout=_ANSWER_SECONDS)
        if not in_channels or await _ends(monitor):
            return
    except TimedOut:
        pass
    await monitor.execute("yank", {"instances": [{"type": "migration"}]}, oob=True)


async def _has_channels(monitor: Monitor) -> bool:
    found = await monitor.execute("query-migrate-capabilities", timeout=_ANSWER_SECONDS)
    return any(each["state"] for each in found if each["capability"] == "multifd")


async def _until_at_rest(monitor: Monitor) -> None:
    """Hold the stream back, and wait for the end of what it is sending."""
    if (await _query(monitor))["status"] != "active":
        return
    await monitor.execute("migrate-set-parameters", {"max-bandwidth": _TINY_BYTES_PER_SECOND})
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _REST_SECONDS
    sent, same = -1, 0
    while same < _LOOKS and loop.time() < give_up_at:
        await asyncio.sleep(_LOOK_SECONDS)
        now = (await _query(monitor)).get("ram", {}).get("transferred", 0)
        sent, same = now, same + 1 if now == sent else 0


async def _ends(monitor: Monitor) -> bool:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _END_SECONDS
    while (await _query(monitor))["status"] == "cancelling":
        if loop.time() > give_up_at:
            return False
        await asyncio.sleep(_LOOK_SECONDS)
    return True


async def _query(monitor: Monitor) -> dict[str, Any]:
    found: dict[str, Any] = await monitor.execute("query-migrate", timeout=_ANSWER_SECONDS)
    return {"status": "none", **found}
