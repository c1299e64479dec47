"""``check``, ``plan`` and ``migrate`` agree on guests in real QEMUs, each with something in its way at the target."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from migrator.core.findings import CATALOGUE
from migrator.testing import network
from migrator.testing.lab import GuestMachine, binaries
from tests.acceptance.service_site import MIB, LiveSite, eventually, guest, served
from tests.conftest import missing

#: On hosts that are namespaces of the test's own, and below what the kernel gives to those who ask for any.
VNC, FORWARDED = 5977, 20987
#: What every guest raises that runs under TCG in the oldest QEMU that is tested; everybody here accepts it.
ALWAYS = "tcg-loses-writes" if CATALOGUE["tcg-loses-writes"].overridable else ""
_LISTEN = (
    "import socket, sys, time; s = [socket.create_server(('127.0.0.1', int(p))) for p in sys.argv[1:]]; \
print('listens', flush=True); time.sleep(600)"
)

_GREETS = (
    "import socket, sys; "
    "print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).recv(4).decode(), end='')"
)


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@contextlib.contextmanager
def listener(site: LiveSite, host: str, *ports: int) -> Iterator[None]:
    """Somebody who has these ports on a host."""
    command = [*site.host(host).prefix, sys.executable, "-c", _LISTEN, *map(str, ports)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"listens\n"
            yield
        finally:
            process.kill()


def small(name: str, *extra: str) -> GuestMachine:
    return replace(guest(name, region=4 * MIB, speed=1 * MIB), extra=extra)


async def command(site: LiveSite, *words: str) -> tuple[int, Any]:
    ended = await site.cli(*words, "--json")
    assert ended.stdout, (words, ended.stderr)
    return ended.returncode, json.loads(ended.stdout)


async def check(site: LiveSite, name: str, *, typed: bool) -> tuple[int, Any]:
    """As a user types it, or, which is quicker, as that asks the service."""
    if typed:
        return await command(site, "check", name, "--to", "b", "--accept", ALWAYS)
    found = await site.post("checks", guest=name, to="b", accept=[ALWAYS] if ALWAYS else [])
    return 0 if found["possible"] else 3, found


async def move(site: LiveSite, name: str, *, typed: bool) -> tuple[int, Any]:
    """Likewise."""
    if typed:
        return await command(site, "migrate", name, "--to", "b", "--accept", ALWAYS, "--wait")
    accept = [ALWAYS] if ALWAYS else []
    status, begun = await site.try_post("migrations", guest=name, to="b", accept=accept)
    if status == 409:
        return 3, begun

    async def over() -> bool:
        begun.update(await site.get(f"migrations/{begun['id']}"))
        return begun["ended_at"] is not None

    await eventually(over, f"the end of {name}", site)
    return 3 if begun["refused"] else 0 if begun["state"] == "completed" else 1, begun


def errors(document: Any) -> set[str]:
    return {each["code"] for each in document["findings"] if each["severity"] == "error"} - {ALWAYS}


@pytest.mark.matrix
async def test_what_is_in_the_way_of_real_guests_is_the_same_for_all_commands() -> None:
    assert binaries()
    shapes = {
        "plain": (small("plain"), set()),
        "screen": (small("screen", "-vnc", f"127.0.0.1:{VNC - 5900}"), {"port-in-use", "placement"}),
        "inward": (
            small("inward", "-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{FORWARDED}-:22"),
            {"port-in-use", "placement"},
        ),
        "address": (small("address", "-vnc", "10.219.77.1:3"), {"address-missing", "placement"}),
        "wire": (
            small("wire", "-netdev", "tap,id=n0,ifname=wire0,script=no,downscript=no"),
            {"tap-missing"},
        ),
        "kernel": (small("kernel", "-fw_cfg", "name=opt/x,file=/proc/self/comm"), set()),
        "throwaway": (small("throwaway", "-snapshot"), {"snapshot"}),
        # Whoever holds it is not on its host.
        "held": (small("held"), {"monitor-silent"}),
    }
    machines = [machine for machine, _ in shapes.values()]
    async with served(machines, "a", "b") as site:
        with listener(site, "b", VNC, FORWARDED), contextlib.ExitStack() as stack:
            (held,) = [qemu for qemu in site.lab.qemus if qemu.machine.name == "held"]
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(held.qmp))

            async def noticed() -> bool:
                found = {each["name"]: each for each in (await site.get("guests"))["items"]}
                return not found["held"]["movable"]

            await eventually(noticed, "the monitor that is held", site)
            code, plan = await command(site, "plan", "a", "--accept", ALWAYS)
            assert code == 8
            planned = {each["guest_name"]: each for each in plan["guests"]}
            assert plan["cannot_move"] == sum(not each["possible"] for each in plan["guests"])
            for name, (machine, wanted) in shapes.items():
                typed = name in ("plain", "screen", "wire")
                code, checked = await check(site, name, typed=typed)
                assert (code, errors(checked)) == (3 if wanted else 0, wanted), (name, checked)
                assert planned[name]["possible"] is not bool(wanted), planned[name]
                # Where placement knows already, a plan asks nobody.
                if "placement" not in wanted:
                    assert errors(planned[name]) == wanted, planned[name]
                code, moved = await move(site, name, typed=typed)
                assert code == (3 if wanted else 0), (name, moved)
                assert errors(moved) == ({"placement"} & wanted or wanted), (name, moved)
                (runs,) = await site.running(machine) if name != "held" else [held]
                assert site.where(runs) == ("a" if wanted else "b"), name
            # Whoever accepts it listens elsewhere, and says where.
            accept = f"{ALWAYS},port-in-use"
            code, moved = await command(site, "migrate", "screen", "--to", "b", "--accept", accept, "--wait")
            assert (code, moved["state"]) == (0, "completed"), moved
            (said,) = [each for each in moved["findings"] if each["code"] == "port-moved"]
            assert f"listens at port {VNC + 1} there" in said["message"]
            look = [*site.host("b").prefix, sys.executable, "-c", _GREETS, str(VNC + 1)]
            assert subprocess.run(look, capture_output=True, check=False).stdout == b"RFB "
