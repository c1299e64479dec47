"""``migrator direct`` and a guest that writes to its disks faster than they can follow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.testing.lab import Lab
from migrator.testing.network import LabHosts, possible
from tests.command import Ended, direct
from tests.conftest import missing
from tests.disks import WritingGuest, writing_guest
from tests.invariants import records

#: The guest writes to one part of its disk 18 times a second, and that part takes the mirror an eighth of a second.
_LINK_BYTES_PER_SECOND = 0.5e6


@pytest.fixture
def hosts() -> Iterator[LabHosts]:
    if (why := possible()) is not None:
        missing(why)
    with LabHosts("alpha", "beta", bytes_per_second=_LINK_BYTES_PER_SECOND) as made:
        yield made


async def _moved(
    lab: Lab, hosts: LabHosts, crossing: tuple[Path, Path], *options: str
) -> tuple[WritingGuest, Ended]:
    guest = await writing_guest(
        lab,
        source=crossing[0],
        destination=crossing[1],
        source_prefix=hosts["alpha"].prefix,
        destination_prefix=hosts["beta"].prefix,
    )
    listen = f"tcp:{hosts['beta'].address}:0"
    return guest, await direct(guest.pair, "--listen", listen, *options, within=60)


@pytest.mark.matrix
async def test_it_is_said_not_to_converge_and_stays(
    lab: Lab, hosts: LabHosts, each_crossing: tuple[Path, Path]
) -> None:
    guest, ended = await _moved(lab, hosts, each_crossing, "--max-downtime", "60ms")
    assert (ended.code, ended.state) == (1, "failed"), ended.error
    assert "its disks do not converge: " in ended.error
    assert ended.document["downtime_seconds"] is None
    await guest.goes_on(guest.pair.source)
    assert await guest.pair.source.query("query-jobs") == []
    assert records() == []
    assert await guest.check(guest.pair.source) > 0


@pytest.mark.matrix
async def test_it_is_stopped_for_them_where_its_policy_says_so(
    lab: Lab, hosts: LabHosts, each_crossing: tuple[Path, Path]
) -> None:
    guest, ended = await _moved(lab, hosts, each_crossing, "--max-downtime", "60ms", "--last-resort", "pause")
    assert (ended.code, ended.state) == (0, "completed"), ended.error
    (why,) = [each["reason"] for each in ended.document["decisions"] if each["action"] == "pause"]
    assert "its disks do not converge: " in why
    await guest.goes_on(guest.pair.destination)
    assert await guest.check(guest.pair.destination) > 0
