"""Guests that somebody else manages, too: a loop that starts one again when its process ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine
from tests.acceptance.service_site import LiveSite, eventually, guest, made
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@asynccontextmanager
async def in_a_loop(site: LiveSite, machine: GuestMachine) -> AsyncIterator[Path]:
    """The guest is run by a shell script that starts it again whenever it ends; while the file is there."""
    [qemu] = site.instances(machine)
    words = Path(f"/proc/{qemu.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    qemu.kill()
    flag, script = site.directory / "go-on", site.directory / "loop.sh"
    flag.touch()
    script.write_text(
        f"while [ -e {flag} ]; do\n  {shlex.join(words)}\n  sleep 0.2\ndone\n", encoding="utf-8"
    )
    loop = await asyncio.create_subprocess_exec(
        *site.host("a").prefix, "sh", str(script), start_new_session=True
    )
    try:
        yield flag
    finally:
        flag.unlink(missing_ok=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(loop.pid, signal.SIGKILL)
        await loop.wait()


@pytest.mark.matrix
async def test_a_loop_is_recognised_refused_and_when_it_doubles_the_guest_everybody_is_told() -> None:
    looped = guest("looped")
    async with made([looped], "a", "b") as site, in_a_loop(site, looped) as flag:
        site.serve()
        await site.until_served()
        await site.known(1)

        async def shown() -> list[Any]:
            return list((await site.get("guests"))["items"])

        async def recognised() -> bool:
            found = [(each["managed_by"], each["run_state"]) for each in await shown()]
            return found == [("parent:sh", "running")]

        await eventually(recognised, "it is recognised", site)
        planned = await site.cli("plan", "a", "--json")
        assert "managed-elsewhere" in planned.stdout
        refused = await site.cli("migrate", "looped", "--to", "b", "--wait")
        assert refused.returncode == 3, refused
        assert "sh manages this guest, and may start it again" in refused.stdout + refused.stderr

        accepted = await site.cli("migrate", "looped", "--to", "b", "--wait", "--accept", "managed-elsewhere")
        assert accepted.returncode == 0, (accepted, site.log())

        async def doubled() -> bool:
            return [each["duplicate"] for each in await shown()] == [True, True]

        await eventually(doubled, "both are marked", site, within=30)
        assert {each["obstacle_code"] for each in await shown()} == {"duplicate"}
        hosts = {each["host"]: each["guests_duplicate"] for each in (await site.get("hosts"))["items"]}
        assert hosts == {"a": [str(looped.uuid)], "b": [str(looped.uuid)]}
        _, metrics = await site.probe("/metrics")
        assert f'migrator_guest_duplicate{{guest="{looped.uuid}"}} 1' in metrics
        table = await site.cli("guests")
        assert table.stdout.count("\tRUNS TWICE\t") == 2, table.stdout
        again = await site.cli("migrate", "a/looped", "--to", "b", "--wait")
        assert again.returncode in (2, 3), again

        flag.unlink()
        for qemu in site.instances(looped):
            if site.where(qemu) == "a":
                qemu.kill()

        async def single() -> bool:
            return [(each["host"], each["duplicate"]) for each in await shown()] == [("b", False)]

        await eventually(single, "one is left", site, within=30)
