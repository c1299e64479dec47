"""Hosts over SSH that are cut off while guests move between them."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from migrator.testing import network
from migrator.testing.lab import Machine
from tests.acceptance.service_site import MIB, SLOW, LiveSite, Witness, guest, made
from tests.conftest import missing
from tests.sshd import Sshd


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@asynccontextmanager
async def over_ssh(
    machines: list[Machine], directory: Path, *names: str
) -> AsyncIterator[tuple[LiveSite, dict[str, Sshd]]]:
    """Hosts with an sshd each, and a service on a host of its own, which is not one of its hosts."""
    async with made(machines, *names, "control", speed=SLOW) as site:
        with contextlib.ExitStack() as stack:
            servers = {}
            for name in names:
                host = site.host(name)
                servers[name] = stack.enter_context(
                    Sshd(directory / f"sshd-{name}", address=host.address, prefix=host.prefix)
                )
                ssh = (
                    f'ssh = "{getpass.getuser()}@{host.address}"\nkey_file = "{servers[name].key}"\n'
                    f'known_hosts = "{servers[name].known_hosts}"'
                )
                site.change_host(name, (f"prefix = {json.dumps(list(host.prefix))}", ssh))
            text = site.config.read_text()
            before, _, _ = text.partition('[[hosts]]\nname = "control"')
            quick = 'ssh_keepalive = "1s"\nssh_connect_timeout = "5s"\nfirst_pause = "200ms"\nattempts = 9\n'
            before = before.replace("[limits]\n", f"[limits]\n{quick}")
            site.config.write_text(before)
            site.prefix = site.host("control").prefix
            site.serve()
            await site.until_served()
            await site.known(len(machines))
            yield site, servers
            site.kill()


async def test_connections_that_are_killed_again_and_again_cost_no_guest(tmp_path: Path) -> None:
    machines = [guest("calm"), guest("busy", region=48 * MIB, speed=30 * MIB)]
    async with over_ssh(machines, tmp_path, "a", "b") as (site, servers), Witness(site, machines):
        begun = await site.post("hosts/a/evacuate")
        broken = 0
        for what in ("preparing", "precopy", "precopy", "finishing"):
            with contextlib.suppress(AssertionError):  # some phases are too short to be seen
                await site.until_state(what, within=3)
            for server in servers.values():
                broken += server.break_connections()
        assert broken >= 4
        await site.ended(begun["id"], "completed", within=60)
        await site.everyone_at(machines, "b")


async def test_target_that_cannot_be_reached_for_a_while_costs_no_guest(tmp_path: Path) -> None:
    machine = guest("db", region=64 * MIB)
    async with over_ssh([machine], tmp_path, "a", "b") as (site, _), Witness(site, [machine]):
        begun = await site.post("hosts/a/evacuate")
        await site.until_state("precopy")
        site.host("b").black_hole()
        await asyncio.sleep(3)  # longer than the connection's keep-alive
        assert [site.where(qemu) for qemu in await site.running(machine)] == ["a"]
        assert (await site.get("guests"))["items"][0]["host"] == "a"
        site.host("b").heal()
        await site.ended(begun["id"], "completed", within=90)
        await site.everyone_at([machine], "b")
