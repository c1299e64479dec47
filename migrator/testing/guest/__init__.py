"""A guest in one disk sector: up in a tenth of a second, its habits are chosen, its memory can be checked.

It fills a region of memory and adds one to one byte in every page of it, pass after pass (:class:`Habit` says
how fast), counts what it does, and says on its first serial port ``A`` when it starts and ``B`` every
:data:`BEAT_SECONDS` while it runs, whatever else it does. Between ticks of its timer it sleeps: an idle guest
takes about a hundredth of a core of its host, and its pace does not depend on the host's speed.

It powers off when the power button is pressed (``system_powerdown``) and starts afresh after ``system_reset``.
``bootsector.S`` is the source; ``python -m migrator.testing.guest.build`` makes ``bootsector.bin`` of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = 4096
SECTOR_BYTES = 512
IMAGE_BYTES = 1 << 20

#: Physical address of the counters; the region begins one page above.
COUNTERS_ADDRESS = 0x3FF000
REGION_ADDRESS = COUNTERS_ADDRESS + PAGE_BYTES

#: The guest spends its dirtying in portions, one a tick.
TICK_SECONDS = 0.01
#: A ``B`` on the serial port every so often.
BEAT_SECONDS = 0.02

#: Where the parameters stand in the sector, and what they are (see the end of ``bootsector.S``).
PARAMETERS_OFFSET = 0x1D0
_PARAMETERS = struct.Struct("<8I2HI")
#: magic, boots, ticks, (unused), passes
_COUNTERS = struct.Struct("<4sIIIQ")
_MAGIC = b"BEAT"
#: Follows the count of passes in every page, so that no page is ever all zero and cheap to send.
_FILLING = 0x5A
#: Compared at once: small enough to stay in the processor's cache.
_BLOCK_PAGES = 128
_TIMER_HERTZ = 1193182
_POWER_OFF, _SUSPEND = 0x2000, 0x2400


class MemoryDamaged(AssertionError):
    """The guest's memory is not what the guest wrote; the text says where it breaks."""


class NotBooted(AssertionError):
    """The guest has not begun yet (or begins anew after a reset): there is nothing to check."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Habit:
    """Writing habit of a guest: which memory it writes to, and how fast. The default is an idle guest.

    A guest with a region has filled it when it says ``A``: none of its pages is zero then or later.
    """

    #: Memory that it dirties, one byte in every page; 0: none.
    region_bytes: int = 0
    #: How fast, each page counting whole; ``None``: as fast as it goes, which takes a core of the host.
    #: Ticks that the guest missed (it was stopped, throttled or starved) are not made up for.
    bytes_per_second: float | None = None
    #: How much faster it gets each second: from :attr:`bytes_per_second` on, and from there again after each burst.
    bytes_per_second_per_second: float = 0
    #: Idle after so many passes; ``None``: never.
    passes: int | None = None
    #: Bursts: dirty for so long, then be quiet for so long; both or neither.
    on_seconds: float = 0
    off_seconds: float = 0
    #: Power off, or suspend to RAM, by itself so long after its start; at most one of the two.
    power_off_after_seconds: float | None = None
    suspend_after_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.region_bytes % PAGE_BYTES:
            raise ValueError(f"region_bytes is {self.region_bytes}, not a multiple of {PAGE_BYTES}")
        if (self.on_seconds > 0) != (self.off_seconds > 0):
            raise ValueError("on_seconds and off_seconds belong together")
        if self.bytes_per_second_per_second and self.bytes_per_second is None:
            raise ValueError("what goes as fast as it can cannot grow")
        if self.power_off_after_seconds is not None and self.suspend_after_seconds is not None:
            raise ValueError("a guest can power off or suspend, not both")

    @property
    def region_pages(self) -> int:
        """How many pages it dirties in a pass."""
        return self.region_bytes // PAGE_BYTES

    @property
    def span_bytes(self) -> int:
        """Memory to read from :data:`COUNTERS_ADDRESS` on for :func:`check_memory`."""
        return PAGE_BYTES + self.region_bytes

    @property
    def needed_bytes(self) -> int:
        """The least memory of a machine for this guest: its firmware needs the uppermost 17 MiB for itself."""
        return REGION_ADDRESS + self.region_bytes + (20 << 20)

    def parameters(self) -> bytes:
        """Return the parameters that the boot sector reads."""
        portion = 0
        if self.bytes_per_second is not None:
            portion = max(1, _portion(self.bytes_per_second))
        suspends = self.suspend_after_seconds is not None
        return _PARAMETERS.pack(
            REGION_ADDRESS,
            self.region_pages,
            portion,
            self.passes or 0,
            _ticks(self.off_seconds),
            _ticks(self.on_seconds),
            _ticks(BEAT_SECONDS),
            _ticks(self.suspend_after_seconds if suspends else self.power_off_after_seconds),
            _SUSPEND if suspends else _POWER_OFF,
            round(_TIMER_HERTZ * TICK_SECONDS),
            _portion(self.bytes_per_second_per_second * TICK_SECONDS),
        )


def _portion(bytes_per_second: float) -> int:
    """Return pages a tick in the boot sector's 256ths."""
    return round(bytes_per_second * TICK_SECONDS / PAGE_BYTES * 256)


def _ticks(seconds: float | None) -> int:
    """0 for nothing, else at least one."""
    return max(1, round(seconds / TICK_SECONDS)) if seconds else 0


#: Boots, then only says that it lives.
IDLE = Habit()


def sector(habit: Habit) -> bytes:
    """The boot sector of a guest with this habit."""
    plain = Path(__file__).with_name("bootsector.bin").read_bytes()
    parameters = habit.parameters()
    return plain[:PARAMETERS_OFFSET] + parameters + plain[PARAMETERS_OFFSET + len(parameters) :]


def write_image(path: Path, habit: Habit = IDLE, *, size_bytes: int = IMAGE_BYTES) -> Path:
    """Write a raw disk image that boots into a guest with this habit; returns ``path``."""
    with path.open("wb") as image:
        image.write(sector(habit))
        image.truncate(size_bytes)
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class GuestCounters:
    """Counts that a guest keeps of its work; all of it is in its memory and moves with it."""

    #: Starts since its machine was switched on: more than 1 after a reset.
    boots: int
    #: Timer ticks since its start, :data:`TICK_SECONDS` each.
    ticks: int
    #: Whole passes over its region.
    passes: int

    @classmethod
    def parse(cls, memory: bytes) -> GuestCounters:
        """Parse a guest's memory at :data:`COUNTERS_ADDRESS`.

        :raise NotBooted: when the guest has not (or, after a reset, not yet) come to its work.
        """
        magic, boots, ticks, _, passes = _COUNTERS.unpack_from(memory)
        if magic != _MAGIC:
            raise NotBooted(f"the guest has not filled its region yet (its mark is {magic!r})")
        return cls(boots=boots, ticks=ticks, passes=passes)


def check_memory(memory: bytes, habit: Habit) -> GuestCounters:
    """Check every byte of a paused guest's region against what the guest has counted.

    In every page the first byte is the number of passes (modulo 256), one more up to where the present pass has
    come, and all others are as they were filled: a page that is stale, lost, foreign or torn shows.

    :param memory: :attr:`Habit.span_bytes` of the guest's memory from :data:`COUNTERS_ADDRESS` on, read while
        it did not run.
    :raise MemoryDamaged: with the first page that is wrong.
    :raise NotBooted: when there is nothing to check yet.
    """
    if len(memory) != habit.span_bytes:
        raise ValueError(
            f"{len(memory)} bytes of memory, not the {habit.span_bytes} that belong to this habit"
        )
    counters = GuestCounters.parse(memory)
    done, due = _page(counters.passes + 1), _page(counters.passes)
    marks = memory[PAGE_BYTES::PAGE_BYTES]
    front = len(marks) - len(marks.lstrip(done[:1]))
    for first in range(0, habit.region_pages, _BLOCK_PAGES):
        count = min(_BLOCK_PAGES, habit.region_pages - first)
        fresh = min(max(front - first, 0), count)
        expected = done * fresh + due * (count - fresh)
        start = PAGE_BYTES * (first + 1)
        found = memory[start : start + len(expected)]
        if found != expected:
            at = next(at for at, value in enumerate(found) if value != expected[at])
            page, offset = divmod(first * PAGE_BYTES + at, PAGE_BYTES)
            raise MemoryDamaged(
                f"page {page} of {habit.region_pages} (address {REGION_ADDRESS + page * PAGE_BYTES:#x}) is wrong:"
                f" its byte {offset} is {found[at]} where {expected[at]} is due after {counters.passes} passes"
            )
    return counters


def _page(passes: int) -> bytes:
    return bytes([passes % 256, _FILLING]).ljust(PAGE_BYTES, b"\0")
