"""Guests that cannot move live are shut down in order and started anew at the target; never two, and never none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.guest import NotBooted, write_image
from migrator.testing.lab import GuestMachine, binaries, until
from tests.acceptance.service_site import LiveSite, guest, made
from tests.acceptance.ssh_site import CONTROL, reached_over_ssh
from tests.acceptance.test_service_disks import DiskSite, disk_site
from tests.conftest import missing
from tests.disks import contents
from tests.integration.test_guest_agent import ScriptedAgent, listening

#: QEMU refuses to migrate a guest with such a device, as it does one with a device of its host.
_STUCK = ("-device", "nvme,drive=local,serial=1")


def stuck(name: str, directory: Path, **how: Any) -> GuestMachine:
    """Return a guest that cannot move live."""
    disk = directory / f"{name}.raw"
    disk.write_bytes(bytes(1 << 20))
    machine = guest(name, region=0, **how)
    drive = f"if=none,id=local,file={disk},format=raw,cache=none,aio=threads,file.locking=off"
    return replace(machine, extra=(*machine.extra, "-drive", drive, *_STUCK))


@asynccontextmanager
async def site_of(
    machine: GuestMachine, binary: Path | None = None, **policy: str
) -> AsyncIterator[LiveSite]:
    """Return a served site of two hosts with this guest, whose policy `cold` says so."""
    said = "".join(f"{key} = {value!r}\n" for key, value in ({"max_shutdown": "20s"} | policy).items())
    async with made([], "a", "b", extra=f"[policies.cold]\n{said}") as site:
        how: dict[str, Any] = {"binary": binary} if binary is not None else {}
        await site.start(machine, "a", **how)
        site.serve()
        await site.until_served()
        await site.known(1)
        yield site


async def runs_at(site: LiveSite, machine: GuestMachine, host: str) -> None:
    """Wait until it has booted there, and see that it runs nowhere else."""

    async def booted() -> bool:
        try:
            return site.where(await site.runs_once(machine)) == host
        except NotBooted:
            return False

    await until(booted, what="its boot")


async def cold(site: LiveSite, machine: GuestMachine, state: str, **more: Any) -> Any:
    body = {"guest": str(machine.uuid), "to": "b", "policy": "cold", **more}
    begun = await site.post("migrations", **body)
    return await site.migration_ended(begun["id"], state)


async def test_a_guest_that_cannot_move_live_is_shut_down_and_boots_at_the_target(
    tmp_path: Path, one_version: Path
) -> None:
    web = stuck("web", tmp_path)
    async with site_of(web, one_version) as site:
        refused = await site.post("migrations", guest=str(web.uuid), to="b")
        refused = await site.migration_ended(refused["id"], "failed")
        assert "blocked" in refused["error"]
        document = await cold(site, web, "completed")
        assert document["mode"] == "cold"
        (why,) = [each for each in document["decisions"] if each["action"] == "cold-start"]
        assert "it is shut down, within 20.0 s, and started anew at b" in why["reason"]
        # From when it was asked to shut down, not only from when it was off.
        assert 0.05 < document["downtime_seconds"] < 20
        await runs_at(site, web, "b")
        assert site.left_in("a") == []
        # And once more: what was started anew is a guest like others.
        back = await site.post("migrations", guest=str(web.uuid), to="a", policy="cold")
        await site.migration_ended(back["id"], "completed")
        await runs_at(site, web, "a")


@pytest.mark.matrix
async def test_a_guest_that_does_not_shut_down_in_time_stays_and_is_ended_by_force_where_that_is_accepted(
    tmp_path: Path,
) -> None:
    # Its interrupts are off: it never hears of its power button.
    web = replace(stuck("web", tmp_path), image=_deaf(tmp_path))
    async with site_of(web, max_shutdown="2s") as site:
        document = await cold(site, web, "failed")
        assert "was asked to shut down and has not within 2.0 s" in document["error"]
        assert "--accept guest-not-shut-down" in document["error"]
        assert [site.where(each) for each in await site.running(web)] == ["a"]
        assert site.left_in("b") == []
        await cold(site, web, "completed", accept=["guest-not-shut-down"])
        assert [site.where(each) for each in await site.running(web)] == ["b"]


@pytest.mark.matrix
async def test_a_guest_whose_migration_is_cancelled_is_not_ended_by_force(tmp_path: Path) -> None:
    web = replace(stuck("web", tmp_path), image=_deaf(tmp_path))
    async with site_of(web, max_shutdown="9s") as site:
        (before,) = await site.running(web)
        begun = await site.post(
            "migrations", guest=str(web.uuid), to="b", policy="cold", accept=["guest-not-shut-down"]
        )
        await site.until_state("precopy")
        await site.post(f"migrations/{begun['id']}/cancel")
        await site.migration_ended(begun["id"], "cancelled")
        (now,) = await site.running(web)
        assert now.pid == before.pid
        assert site.left_in("b") == []


def _deaf(directory: Path) -> Path:
    """Return the image of a guest that runs and hears of nothing: `cli`, and a jump to itself."""
    image = directory / "deaf.img"
    image.write_bytes((b"\xfa\xeb\xfe" + bytes(507) + b"\x55\xaa").ljust(1 << 20, b"\0"))
    return image


async def test_a_guest_that_cannot_be_started_at_the_target_boots_again_where_it_was(tmp_path: Path) -> None:
    web = stuck("web", tmp_path)
    async with site_of(web) as site:
        # What waits there can be started; what is to boot the guest cannot.
        broken = tmp_path / "qemu"
        (qemu,) = site.instances(web)
        program = Path(f"/proc/{qemu.pid}/exe").readlink()
        broken.write_text(
            f'#!/bin/sh\ncase "$*" in *-incoming*) exec {program} "$@";; esac\necho no luck >&2\nexit 1\n'
        )
        broken.chmod(0o755)
        site.change_host("b", ('memory = "4GiB"', f'memory = "4GiB"\nqemu = "{broken}"'))
        await site.restart()
        document = await cold(site, web, "failed")
        assert "no luck" in document["error"]
        await runs_at(site, web, "a")
        assert site.left_in("b") == []


@pytest.mark.matrix
async def test_a_controller_that_is_killed_while_the_guest_is_asked_to_shut_down_starts_no_second_one(
    tmp_path: Path,
) -> None:
    # It goes on all the time: one more QEMU would run it twice.
    web = replace(stuck("web", tmp_path), image=_deaf(tmp_path))
    async with site_of(web, max_shutdown="9s") as site:
        (qemu,) = site.instances(web)
        begun = await site.post("migrations", guest=str(web.uuid), to="b", policy="cold")
        await site.until_state("precopy")
        await site.restart()
        document = await site.migration_ended(begun["id"], "failed")
        assert "was asked to shut down and has not within" in document["error"]
        assert [each.pid for each in site.instances(web)] == [qemu.pid]
        assert await qemu.runs()


async def test_a_controller_that_is_killed_once_the_guest_is_off_has_it_run_in_one_place(
    tmp_path: Path,
) -> None:
    web = stuck("web", tmp_path)
    async with site_of(web) as site:
        (qemu,) = site.instances(web)
        begun = await site.post("migrations", guest=str(web.uuid), to="b", policy="cold")
        await until(lambda: not qemu.alive, what="its shutdown")
        await site.restart()

        async def over() -> bool:
            return bool((await site.get(f"migrations/{begun['id']}"))["ended_at"])

        await until(over, what="its end", within=60)
        document = await site.get(f"migrations/{begun['id']}")
        where = {"completed": "b"}.get(document["state"], "a")
        assert document["state"] in ("completed", "failed", "cancelled"), document
        await runs_at(site, web, where)


async def test_a_guest_whose_agent_lies_is_shut_down_by_its_power_button_and_an_evacuation_says_so_before(
    tmp_path: Path,
) -> None:
    socket = tmp_path / "ga.sock"
    port = (
        *("-device", "virtio-serial,addr=0x6"),
        *("-chardev", f"socket,id=ga,path={socket},server=on,wait=off"),
        *("-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"),
    )
    web, agent = stuck("web", tmp_path, extra=port), ScriptedAgent()
    async with site_of(web, max_shutdown="60s") as site:
        socket.unlink()  # the guest has no agent: this one takes its place, and does nothing that it is told
        async with listening(socket, agent):
            plan = await site.post("plans", host="a", policy="cold")
            (planned,) = plan["guests"]
            assert planned["possible"]
            assert planned["downtime_seconds"] == 70
            assert "cold-start" in [each["code"] for each in planned["findings"]]
            asked = await site.post("hosts/a/evacuate", policy="cold")
            run = await site.ended(asked["id"], "completed")
            document = await site.get(f"migrations/{run['guests'][0]['migration']}")
            assert agent.asked[-1] == "guest-shutdown"
            assert 10 < document["downtime_seconds"] < 60
        await runs_at(site, web, "b")


_PATTERN = b"its own" * 1000


@asynccontextmanager
async def own_disks_over_ssh(directory: Path, crossing: tuple[Path, Path]) -> AsyncIterator[DiskSite]:
    """Two hosts that are reached over SSH, and a guest that cannot move live, whose disks only the first one has."""
    if (why := network.possible()) is not None:
        missing(why)

    def prepare(here: DiskSite) -> GuestMachine:
        boots, local = write_image(directory / "boots.img"), directory / "local.raw"
        local.write_bytes(_PATTERN.ljust(1 << 20, b"\0"))
        for image, name in ((boots, "disk.img"), (local, "local.raw")):
            here.site.hosts["a"].run("cp", "--", str(image), str(here.images / name))
        drive = f"if=none,id=local,file={here.images}/local.raw,format=raw,cache=none,aio=threads"
        return replace(here.machine, extra=("-drive", drive, *_STUCK))

    async with disk_site(
        prepare=prepare,
        names=("a", "b", CONTROL),
        reached=lambda site: reached_over_ssh(site, directory, "a", "b", each_other=True),
        crossing=crossing,
        limit_seconds=90.0,
        extra='[policies.cold]\nmax_shutdown = "20s"\n',
    ) as here:
        yield here


@pytest.mark.matrix
async def test_a_guest_with_disks_of_its_own_is_started_anew_over_ssh_and_comes_home_by_the_same_policy(
    tmp_path: Path, one_crossing: tuple[Path, Path]
) -> None:
    async with own_disks_over_ssh(tmp_path, one_crossing) as here:
        site = here.site
        asked = await site.post("hosts/a/evacuate", policy="cold")
        run = await site.ended(asked["id"], "completed")
        document = await site.get(f"migrations/{run['guests'][0]['migration']}")
        assert document["mode"] == "cold", document["decisions"]
        await runs_at(site, here.machine, "b")
        assert here.names("b") == ["disk.img", "local.raw"]
        left = here.names("a")
        assert [name.partition(".left-")[0] for name in left] == ["disk.img", "local.raw"]
        assert contents(site, site.hosts["b"], here.images / "local.raw").startswith(_PATTERN)
        assert site.left_in("a") == []
        home = await site.post("hosts/a/restore")
        assert home["policy"] == "cold"
        await site.ended(home["id"], "completed")
        await runs_at(site, here.machine, "a")
        assert here.names("a") == sorted([*left, "disk.img", "local.raw"])


@pytest.mark.matrix
@pytest.mark.parametrize("when", ["copied", "off"])
async def test_a_controller_that_is_killed_leaves_a_guest_with_disks_of_its_own_at_one_host_over_ssh(
    tmp_path: Path, when: str
) -> None:
    async with own_disks_over_ssh(tmp_path, (binaries()["7.2"],) * 2) as here:
        site = here.site
        (qemu,) = site.instances(here.machine)
        begun = await site.post("migrations", guest="web", to="b", policy="cold")
        if when == "copied":  # on a busy machine that is over before it is seen
            await site.until_state("mirroring", "precopy", "finishing", "completed")
        else:
            await until(lambda: not qemu.alive, what="its shutdown", within=60)
        await site.restart()

        async def over() -> bool:
            return bool((await site.get(f"migrations/{begun['id']}"))["ended_at"])

        await until(over, what="its end", within=90)
        document = await site.get(f"migrations/{begun['id']}")
        where = {"completed": "b"}.get(document["state"], "a")
        assert document["state"] in ("completed", "failed", "cancelled"), document
        await runs_at(site, here.machine, where)
        gone = {"a": "b", "b": "a"}[where]
        assert here.names(where) == ["disk.img", "local.raw"]
        assert [name for name in here.names(gone) if ".left-" not in name] == []
