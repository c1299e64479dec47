"""The boot sector's source and bytes belong together; its parameters and its memory are understood."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from migrator.testing.guest import (
    IDLE,
    IMAGE_BYTES,
    PAGE_BYTES,
    PARAMETERS_OFFSET,
    SECTOR_BYTES,
    Habit,
    MemoryDamaged,
    NotBooted,
    build,
    check_memory,
    sector,
    write_image,
)


def test_source_and_bytes_are_those_that_were_built_together() -> None:
    assert build.sums(build.SOURCE.read_bytes(), build.BINARY.read_bytes()) == build.SUMS.read_text()


def test_source_assembles_to_these_bytes() -> None:
    if build.tools() is None:
        pytest.skip("no assembler here")
    assert build.assemble() == build.BINARY.read_bytes()


def test_parameters_in_the_sector_are_those_of_an_idle_guest() -> None:
    assert build.BINARY.read_bytes() == sector(IDLE)


def test_image_is_a_boot_sector_and_then_nothing(tmp_path: Path) -> None:
    content = write_image(tmp_path / "disk", Habit(region_bytes=1 << 20)).read_bytes()
    assert len(content) == IMAGE_BYTES
    assert content[SECTOR_BYTES - 2 : SECTOR_BYTES] == b"\x55\xaa"
    assert not any(content[SECTOR_BYTES:])


def test_habit_becomes_pages_and_ticks() -> None:
    habit = Habit(
        region_bytes=100 << 20,
        bytes_per_second=10 << 20,
        on_seconds=2,
        off_seconds=0.5,
        power_off_after_seconds=30,
        bytes_per_second_per_second=40 << 20,
    )
    _, pages, portion, _, off, on, beat, end, control, _, growth = struct.unpack_from(
        "<8I2HI", sector(habit), PARAMETERS_OFFSET
    )
    assert (pages, off, on, beat, end, control) == (25600, 50, 200, 2, 3000, 0x2000)
    assert portion / 256 * PAGE_BYTES / 0.01 == pytest.approx(10 << 20, rel=0.001)
    assert growth / 256 * PAGE_BYTES / 0.01 / 0.01 == pytest.approx(40 << 20, rel=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"region_bytes": 5000},
        {"on_seconds": 1},
        {"off_seconds": 1},
        {"power_off_after_seconds": 1, "suspend_after_seconds": 1},
        {"bytes_per_second_per_second": 1},
    ],
    ids=str,
)
def test_habit_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"region_bytes|on_seconds|suspend|grow"):
        Habit(**wrong)  # type: ignore[arg-type]


PAGES = 300
HABIT = Habit(region_bytes=PAGES * PAGE_BYTES)


def memory(*, passes: int, front: int, magic: bytes = b"BEAT") -> bytearray:
    """As a guest would leave it in its pass number ``passes``, having done ``front`` pages of it."""
    counters = struct.pack("<4sIIIQ", magic, 1, 7, 0, passes).ljust(PAGE_BYTES, b"\0")
    pages = [bytes([(passes + (page < front)) % 256, 0x5A]).ljust(PAGE_BYTES, b"\0") for page in range(PAGES)]
    return bytearray(counters + b"".join(pages))


@pytest.mark.parametrize("passes", [0, 1, 254, 255, 256, 1 << 40])
@pytest.mark.parametrize("front", [0, 1, 128, 299, PAGES])
def test_memory_in_the_middle_of_a_pass_is_sound(passes: int, front: int) -> None:
    assert check_memory(bytes(memory(passes=passes, front=front)), HABIT).passes == passes


@pytest.mark.parametrize(
    ("page", "offset", "change"),
    [(0, 0, 2), (0, 0, -1), (99, 0, 1), (100, 0, 1), (200, 1, 1), (299, 4095, 1)],
    ids=["first", "first-stale", "behind-the-front", "zero", "filling", "last-byte"],
)
def test_one_wrong_byte_is_found_and_named(page: int, offset: int, change: int) -> None:
    damaged = memory(passes=9, front=100)
    at = PAGE_BYTES * (1 + page) + offset
    damaged[at] = damaged[at] + change if page != 100 else 0
    with pytest.raises(MemoryDamaged, match=r"page \d+ of 300") as caught:
        check_memory(bytes(damaged), HABIT)
    # A first page that is stale moves the front, so all that is ahead of it shows.
    assert f"page {page} " in str(caught.value) or page == 0


def test_memory_that_is_consistent_but_old_is_found() -> None:
    damaged = memory(passes=9, front=0)
    damaged[:PAGE_BYTES] = memory(passes=11, front=0)[:PAGE_BYTES]
    with pytest.raises(MemoryDamaged, match="page 0 "):
        check_memory(bytes(damaged), HABIT)


def test_guest_that_has_not_begun_is_not_called_damaged() -> None:
    with pytest.raises(NotBooted):
        check_memory(bytes(memory(passes=0, front=0, magic=b"\0\0\0\0")), HABIT)
