"""Guards of hosts as they are seen from outside, and what becomes of the guests that they guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from migrator.testing.lab import LabQemu, until

#: A guest that writes 8 MiB/s stays in precopy, though it would be there soon with a lavish limit.
WITHOUT_END = (
    "--postcopy",
    "never",
    "--max-bandwidth",
    "8MiB/s",
    "--max-throttle",
    "0%",
    "--max-downtime",
    "50ms",
)
#: What a guard's command line has.
_PROGRAM = b"compile(t, 'guard'"
#: More than signs of life have between two looks, and less than anything else that it is told.
_SIGNS_BYTES = 200


def _descendants(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(each) for task in tasks for each in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return []
    return [pid, *(each for child in children for each in _descendants(child))]


def _read_bytes(pid: int) -> int:
    """Return how much a process has read so far."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "rchar":
            return int(value)
    raise AssertionError("rchar is missing")


async def guarded(*, under: Callable[[], Sequence[int]]) -> None:
    """A guard among the descendants of these processes has heard all, and reads signs of life alone."""
    before: dict[int, int] = {}
    signs: dict[int, int] = {}

    def hears() -> bool:
        for pid in (each for root in under() for each in _descendants(root)):
            try:
                if _PROGRAM not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    continue
                now = _read_bytes(pid)
            except OSError:
                continue
            more = now - before.get(pid, 0)
            before[pid] = now
            if more:
                signs[pid] = signs.get(pid, 0) + 1 if more <= _SIGNS_BYTES else 0
        return max(signs.values(), default=0) >= 2

    await until(hears, what="a guard that hears signs of life", within=60)


async def comes_to_its_switch(qemu: LabQemu) -> None:
    """Wait until the guard holds the stream back, then let it go, as if there were next to nothing to send any more."""

    async def parked() -> bool:
        found = await qemu.query("query-migrate-parameters")
        return int(found["max-bandwidth"]) == 4096

    await until(parked, what="the guard holds the stream back")
    await qemu.query("migrate-set-parameters", max_bandwidth=1 << 30, downtime_limit=2000)


async def runs_on(qemu: LabQemu) -> None:
    async def there() -> bool:
        return await qemu.migration_status() == "cancelled" and await qemu.run_state() == "running"

    await until(there, what="the guest goes on at the source")
