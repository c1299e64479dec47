"""What the disks of a guest lack at its target counts as downtime, and memory waits while that is too much."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from migrator.core.migration.disk_backlog import Backlog, DiskBacklog
from migrator.core.migration.disk_copies import MirrorPhase, Mirrors
from migrator.core.model import Sample

MIB = 1 << 20


def watched(
    *,
    path: float,
    writes: Callable[[float], float],
    seconds: float,
    memory: float = 0.0,
    ceiling: float = 0.3,
    left: float = 0.0,
) -> Backlog:
    """Return what is said of a guest that writes so many bytes a second at a time, over a path that carries so much."""
    backlog = DiskBacklog(ceiling_seconds=ceiling)
    done, at, last = 0.0, 0.0, Backlog()
    while at < seconds:
        sent = min(left, (path - memory) * 0.1)
        left, done, at = left - sent + writes(at) * 0.1, done + sent, at + 0.1
        mirrors = Mirrors(phase=MirrorPhase.READY, total_bytes=round(done + left), done_bytes=round(done))
        last = backlog.watch(mirrors, at_seconds=at, memory_bytes_per_second=memory)
    return last


def test_guest_that_hardly_writes_is_switched_at_any_time() -> None:
    seen = watched(path=10 * MIB, writes=lambda at: 0.1 * MIB, seconds=20, memory=5 * MIB)
    assert (seen.fits, seen.diverges, seen.memory_bytes_per_second) == (True, "", None)
    assert seen.seconds < 0.05


def test_burst_is_sent_before_the_switch_and_memory_waits_for_it() -> None:
    def burst(at: float) -> float:
        return 20 * MIB if 4 < at < 6 else 0.0

    during = watched(path=10 * MIB, writes=burst, seconds=6, memory=5 * MIB)
    assert not during.fits
    assert during.memory_bytes_per_second is not None
    assert during.memory_bytes_per_second < MIB
    assert watched(path=10 * MIB, writes=burst, seconds=16, memory=0.5 * MIB).fits


@pytest.mark.parametrize("ceiling", [0.03, 0.3, 2.0])
def test_what_fits_is_what_the_ceiling_allows(ceiling: float) -> None:
    seen = watched(path=10 * MIB, writes=lambda at: 4 * MIB, seconds=5, ceiling=ceiling)
    assert seen.fits == (ceiling > 0.1)


def test_guest_that_writes_faster_than_its_path_for_good_is_said_to() -> None:
    at_first = watched(path=MIB, writes=lambda at: 2 * MIB, seconds=6)
    assert (at_first.fits, at_first.diverges) == (False, "")
    later = watched(path=MIB, writes=lambda at: 2 * MIB, seconds=12)
    assert "its disks do not converge" in later.diverges
    assert "2.0 MiB/s" in later.diverges


def test_disk_that_takes_long_converges_where_it_gains() -> None:
    seen = watched(path=10 * MIB, writes=lambda at: 5 * MIB, seconds=60, left=10_000 * MIB)
    assert (seen.fits, seen.diverges) == (False, "")


def test_network_that_carries_nothing_is_given_up_after_a_while() -> None:
    assert (
        watched(path=0.0, writes=lambda at: 0.0, seconds=20, left=MIB, memory=MIB, ceiling=0.03).diverges
        == ""
    )


def test_memory_gets_what_the_guests_writes_leave() -> None:
    seen = watched(path=10 * MIB, writes=lambda at: 4 * MIB, seconds=10, memory=5 * MIB, ceiling=0.15)
    assert seen.fits
    assert seen.memory_bytes_per_second == pytest.approx(4 * MIB, rel=0.01)  # 9 are seen to be carried


def test_what_is_left_counts_as_long_as_it_takes() -> None:
    assert Backlog(seconds=0.1).in_downtime(Sample(), 1000.0).disk_backlog_bytes == 100
