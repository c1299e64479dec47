"""The service copies disks between hosts while something goes wrong at a random instant: no write is lost.

What goes wrong: the service is killed and started again, either QEMU is killed, the network is cut, for a while or for
good, the target's file system is full, the tunnel is killed, somebody cancels. Plainly, and through a tunnel.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import binaries, until
from tests import outcomes
from tests.acceptance.service_site import MIB
from tests.acceptance.ssh_site import CONTROL, reached_over_ssh, tunnels
from tests.acceptance.test_service_disks import DiskSite, disk_site
from tests.conftest import missing

#: The disk and then the memory take about a second each, once the target is prepared.
_LINK = 16 * MIB
_DISK_BYTES = 16 * MIB
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.3, 4.5
_FOR_GOOD_SECONDS = 45.0
_FAULTS = ("service", "service", "destination", "source", "cut", "cut", "full", "cancel")
_THROUGH_TUNNEL = ("service", "service", *_FAULTS, "tunnel")
_POLICIES = '[policies.tunnel]\nextends = "default"\nstream = "ssh"\n'
#: Until a move has ended that is undone, or begins anew, once what went wrong is over.
_LIMIT_SECONDS = 150.0


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@asynccontextmanager
async def hosts_over_ssh(directory: Path, crossing: tuple[Path, Path]) -> AsyncIterator[DiskSite]:
    """Two hosts with images of their own, which can log in to each other."""
    async with disk_site(
        size_bytes=_DISK_BYTES,
        names=("a", "b", CONTROL),
        reached=lambda site: reached_over_ssh(site, directory, "a", "b", each_other=True),
        crossing=crossing,
        limit_seconds=_LIMIT_SECONDS,
        bytes_per_second=_LINK,
        extra=_POLICIES,
    ) as here:
        yield here


async def harm(here: DiskSite, fault: str, migration: str, chance: random.Random) -> None:
    """Let something go wrong; returns once that is over."""
    site, target = here.site, here.site.host("b")
    match fault:
        case "service":
            await site.restart()
        case "destination" | "source":
            for pid, argv in site.processes():
                if ("-incoming" in argv) is (fault == "destination"):
                    os.kill(pid, signal.SIGKILL)
        case "cut":
            target.black_hole()
            await asyncio.sleep(chance.choice((0.3, 1.0, 4.0, _FOR_GOOD_SECONDS)))
            target.heal()
        case "full":
            with contextlib.suppress(network.NetworkError):
                target.run("dd", "if=/dev/zero", f"of={here.images}/filler", "bs=64k", "status=none")
        case "tunnel":
            for pid in tunnels(site, "b"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        case "cancel":
            await site.try_post(f"migrations/{migration}/cancel")


async def ended(here: DiskSite, migration: str, fault: str) -> Any:
    """Return the document of the migration once it has ended, or is held where the process of its guest was killed."""
    found: dict[str, Any] = {}

    async def over() -> bool:
        found.update(await here.site.get(f"migrations/{migration}"))
        held = found["state"] == "held" and fault in ("source", "destination")
        return found["ended_at"] is not None or held

    try:
        await until(over, what="the end of the migration", within=_LIMIT_SECONDS)
    except TimeoutError:
        raise AssertionError((found, here.site.log()[-8000:])) from None
    return found


async def left_nothing(here: DiskSite, owner: str) -> int:
    """Assert that nothing of a move is left but the guest, and that no write was lost; return how many there were."""
    site = here.site

    def alone() -> bool:
        return len(list(site.processes())) == 1 and not tunnels(site, "b")

    await until(alone, what="nobody else, and no tunnel", within=60)
    (qemu,) = site.instances(here.machine)
    assert site.where(qemu) == owner
    assert await qemu.query("query-jobs") == []
    assert await qemu.query("query-block-exports") == []
    nodes = await qemu.query("query-named-block-nodes", flat=True)
    assert [node["node-name"] for node in nodes if node["node-name"].startswith("migrator-")] == []
    other = {"a": "b", "b": "a"}[owner]
    # A host that was cut off is looked at again after a while.
    await until(lambda: images(here, other) == [], what=f"no image at {other}", within=_LIMIT_SECONDS)
    await until(lambda: site.left_in(other) == [], what=f"nothing of a QEMU at {other}", within=60)
    assert images(here, owner) == ["disk.img"]
    count = await here.check(owner)
    assert list((site.directory / "state" / "records").glob("*.jsonl")) == []
    return count


def images(here: DiskSite, host: str) -> list[str]:
    """Return the images of a host, without those that a guest has left."""
    return [name for name in here.names(host) if not name.startswith("disk.img.left-")]


async def one(directory: Path, crossing: tuple[Path, Path], seed: int, *, tunnel: bool) -> str:
    """Move the guest, with something that goes wrong; what became of it."""
    chance = random.Random(seed)
    fault = chance.choice(_THROUGH_TUNNEL if tunnel else _FAULTS)
    after = chance.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS)
    async with hosts_over_ssh(directory, crossing) as here:
        site = here.site
        policy = "tunnel" if tunnel else "default"
        begun = await site.post("migrations", guest="web", to="b", policy=policy)
        await asyncio.sleep(after)  # the instant is what is tested
        late = (await site.get(f"migrations/{begun['id']}"))["ended_at"] is not None
        await harm(here, fault if not late else "nothing", begun["id"], chance)
        document = await ended(here, begun["id"], fault)
        here.site.hosts["b"].run("rm", "-f", f"{here.images}/filler")
        told = f"{fault} after {after:.3f} s (seed {seed}): {document['state']}: {document['error']}"
        state, writes = document["state"], 0
        if fault in ("source", "destination") and (state == "held" or not site.instances(here.machine)):
            # The guest is lost with the process that had it, and nobody runs it besides.
            assert await site.running(here.machine) == [], told
        else:
            writes = await left_nothing(here, "b" if state == "completed" else "a")
        by = f"the service over SSH, {'through a tunnel' if tunnel else 'plainly'}"
        outcomes.note(by=by, fault="nothing: it had ended" if late else fault, ended=state, writes=writes)
        return told


@pytest.mark.matrix
async def test_a_service_that_is_killed_while_a_disk_goes_through_a_tunnel_loses_no_write(
    tmp_path: Path, one_crossing: tuple[Path, Path]
) -> None:
    async with hosts_over_ssh(tmp_path, one_crossing) as here:
        begun = await here.site.post("migrations", guest="web", to="b", policy="tunnel")
        await here.site.until_state("mirroring")
        await here.site.restart()
        await here.site.migration_ended(begun["id"], "completed", within=90)
        await left_nothing(here, "b")


@pytest.mark.matrix
async def test_an_image_at_a_target_that_is_cut_off_for_long_goes_once_that_is_back_and_is_in_nobodys_way(
    tmp_path: Path,
) -> None:
    async with hosts_over_ssh(tmp_path, (binaries()["7.2"],) * 2) as here:
        site, target = here.site, here.site.host("b")
        begun = await site.post("migrations", guest="web", to="b")
        await site.until_state("mirroring")
        target.black_hole()
        document = await ended(here, begun["id"], "cut")
        assert document["state"] == "failed", document
        assert "left-over" in [each["code"] for each in document["findings"]]
        target.heal()
        await until(lambda: here.names("b") == [], what="no image at the target", within=_LIMIT_SECONDS)
        again = await site.post("migrations", guest="web", to="b")
        await site.migration_ended(again["id"], "completed", within=_LIMIT_SECONDS)
        assert await left_nothing(here, "b") > 0


@pytest.mark.soak
@pytest.mark.parametrize("route", ["tunnel", "plain"])
@pytest.mark.parametrize("seed", range(500, 550))
async def test_between_hosts_at_a_random_instant(
    tmp_path: Path, one_crossing: tuple[Path, Path], seed: int, route: str
) -> None:
    print(await one(tmp_path, one_crossing, seed, tunnel=route == "tunnel"))  # noqa: T201 - shown with a failed test
