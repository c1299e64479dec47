"""A host is never called empty while a QEMU is there, whether or not anybody can ask it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest

from migrator.testing import network
from migrator.testing.lab import binaries
from tests.acceptance.service_site import MIB, eventually, freeze, guest, served, thaw
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@pytest.mark.matrix
async def test_guests_that_cannot_be_asked_are_in_the_way_of_an_evacuation() -> None:
    free, frozen = guest("free"), guest("frozen")
    async with served([free, frozen], "a", "b") as site:
        [qemu] = site.instances(frozen)
        stranger = site.directory / "stranger.pid"
        command = [
            *site.host("a").prefix,
            str(next(iter(binaries().values()))),
            "-S",
            "-m",
            "64",
            "-name",
            "stranger",
        ]
        command += ["-nodefaults", "-display", "none", "-pidfile", str(stranger), "-daemonize"]
        child = await asyncio.create_subprocess_exec(*command)
        assert await child.wait() == 0
        freeze(qemu.pid)
        try:

            async def lost() -> bool:  # the evacuation's look is not the first that fails
                items = (await site.get("guests"))["items"]
                return [each["run_state"] for each in items].count("lost-contact") == 2

            await eventually(lost, "those that cannot be asked", site)
            done = await site.cli("evacuate", "a", "--wait")
            assert done.returncode == 1, (done, site.log())
            assert "2 guests still on a" in done.stdout + done.stderr
            assert "frozen" in done.stdout + done.stderr
            assert "stranger" in done.stdout + done.stderr
            [host] = [each for each in (await site.get("hosts"))["items"] if each["host"] == "a"]
            assert (host["state"], host["guests"], host["guests_unmonitored"]) == ("draining", 2, 1)
            shown = {each["name"]: each for each in (await site.get("guests"))["items"]}
            assert {name: each["run_state"] for name, each in shown.items()} == {
                "free": "running",
                "frozen": "lost-contact",
                "stranger": "lost-contact",
            }
            assert shown["frozen"]["guest"] == str(frozen.uuid)
            assert shown["frozen"]["memory_bytes"] == 128 * MIB
            _, metrics = await site.probe("/metrics")
            assert 'migrator_guest_unmonitored{host="a"} 1' in metrics
            assert f'migrator_guest_migratable{{guest="{frozen.uuid}",host="a"}} 0' in metrics
        finally:
            thaw(qemu.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(stranger.read_text()), signal.SIGKILL)

        async def asked() -> bool:
            items = (await site.get("guests"))["items"]
            return {each["run_state"] for each in items} == {"running"}

        await eventually(asked, "everyone who is left", site)
        done = await site.cli("evacuate", "a", "--wait")
        assert done.returncode == 0, (done, site.log())
        await site.everyone_at([free, frozen], "b")
