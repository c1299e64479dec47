"""The network at the target, in real namespaces with bridges and taps: no guest is moved to where nobody reaches it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.core.findings import CATALOGUE
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Lab
from migrator.testing.network import LabHosts
from tests.acceptance.service_site import LiveSite, eventually, guest, made
from tests.command import direct
from tests.conftest import missing

ALWAYS = ["tcg-loses-writes"] if CATALOGUE["tcg-loses-writes"].overridable else []
#: As scripts go: it does what it does whatever that comes to.
SCRIPT = """#!/bin/sh
ip link set "$1" up
ip link set "$1" master "$(cat {directory}/bridge-on-$(cat {directory}/name-of-$(readlink /proc/self/ns/net)))"
exit 0
"""


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


def wired(name: str, tap: str, script: str = "no") -> GuestMachine:
    options = f"tap,id=n0,ifname={tap},script={script},downscript=no"
    return replace(guest(name), extra=("-netdev", options, "-device", "virtio-net-pci,netdev=n0"))


async def end_of(site: LiveSite, **body: Any) -> Any:
    begun = await site.post("migrations", **{"to": "b", "accept": ALWAYS, **body})

    async def over() -> bool:
        begun.update(await site.get(f"migrations/{begun['id']}"))
        return begun["ended_at"] is not None

    await eventually(over, "the end of a migration", site)
    return begun


def errors(document: Any) -> list[str]:
    return [each["code"] for each in document["findings"] if each["severity"] == "error"]


async def test_a_guest_goes_only_where_its_network_is_as_it_was(tmp_path: Path) -> None:
    script = tmp_path / "ifup"
    script.write_text(SCRIPT.format(directory=tmp_path))
    script.chmod(0o755)
    fixed, scripted = wired("fixed", "t0"), wired("scripted", "t1", str(script))
    async with made([], "a", "b") as site:
        for name in ("a", "b"):
            host = site.host(name)
            host.add_bridge("br0", way_out="out0")
            host.add_bridge("br1")
            host.add_tap("t0", bridge="br0", up=name == "a")
            namespace = host.run("readlink", "/proc/self/ns/net").strip()
            (tmp_path / f"name-of-{namespace}").write_text(name)
            (tmp_path / f"bridge-on-{name}").write_text("br0" if name == "a" else "br1")
        for machine in (fixed, scripted):
            await site.boot(machine, "a")
        site.serve()
        await site.until_served()
        await site.known(2)
        guests = {each["name"]: each for each in (await site.get("guests"))["items"]}
        assert [guests[name]["network_state"] for name in ("fixed", "scripted")] == ["up", "up"]

        # A tap that waits there, and is down: known before anything is started.
        plan = await site.post("plans", host="a", accept=ALWAYS)
        planned = {each["guest_name"]: each for each in plan["guests"]}
        assert (planned["fixed"]["possible"], errors(planned["fixed"])) == (False, ["tap-down"])
        assert planned["scripted"]["possible"], "what its script will do cannot be known"
        checked = await site.post("checks", guest="fixed", to="b", accept=ALWAYS)
        assert errors(checked) == ["tap-down"]
        refused = await end_of(site, guest="fixed")
        assert (refused["refused"], errors(refused)) == (True, ["tap-down"])

        # A script that puts it on another bridge there: seen once it has, before the switch.
        refused = await end_of(site, guest="scripted")
        assert (refused["state"], refused["refused"]) == ("failed", True)
        assert errors(refused)[0] == "tap-bridge"
        for machine in (fixed, scripted):
            assert site.where(await site.runs_once(machine)) == "a"
        await eventually(lambda: _alone(site, 2), "nobody else", site)
        assert site.left_in("b") == []

        # Mended, both go, and it is said how they are connected.
        site.host("b").run("ip", "link", "set", "t0", "up")
        (tmp_path / "bridge-on-b").write_text("br0")
        for ended in [await end_of(site, guest=name) for name in ("fixed", "scripted")]:
            assert (ended["state"], ended["network_state"], ended["network_problem"]) == (
                "completed",
                "up",
                "",
            )
            shown = await site.cli("status", ended["id"])
            assert "    network up" in shown.stdout
            (learned,) = [each for each in ended["decisions"] if each["action"] == "network-learned"]
            tap = "t0" if ended["guest_name"] == "fixed" else "t1"
            assert re.fullmatch(
                rf"br0 at b has ([0-9a-f]{{2}}:){{5}}[0-9a-f]{{2}} on {tap}", learned["reason"]
            )

        # Back to where it is not right, by a person's word: then that is said, wherever one looks.
        site.host("a").run("ip", "link", "set", "t0", "nomaster")
        ended = await end_of(site, guest="fixed", to="a", accept=[*ALWAYS, "tap-bridge"])
        assert (ended["state"], ended["network_state"]) == ("completed", "down")
        assert "t0 is on no bridge" in ended["network_problem"]
        assert "network-down" in [each["code"] for each in ended["findings"]]
        site.host("a").run("ip", "link", "set", "t0", "down")

        async def noticed() -> bool:
            found = {each["name"]: each for each in (await site.get("guests"))["items"]}
            return (found["fixed"]["network_state"], found["scripted"]["network_state"]) == ("down", "up")

        await eventually(noticed, "the tap that is down", site)
        listed = await site.cli("guests")
        assert "network down: t0 is down" in listed.stdout


async def _alone(site: LiveSite, count: int) -> bool:
    return len(list(site.processes())) == count


async def test_direct_looks_at_the_network_before_and_says_how_the_guest_is_connected() -> None:
    with LabHosts("alpha", "beta") as hosts:
        for host in hosts:
            host.add_bridge("br0", way_out="out0")
            host.add_tap("t0", bridge="br0")
        async with Lab() as lab:
            pair = await lab.pair(
                wired("web", "t0"),
                source_prefix=hosts["alpha"].prefix,
                destination_prefix=hosts["beta"].prefix,
            )
            hosts["beta"].run("ip", "link", "set", "t0", "down")
            refused = await direct(pair)
            assert refused.code == 3
            assert "tap-down" in [each["code"] for each in refused.document["findings"]]
            hosts["beta"].run("ip", "link", "set", "t0", "up")
            ended = await direct(pair, "--listen", f"tcp:{hosts['beta'].address}:0")
            assert ended.code == 0, json.dumps(ended.document)
            assert (ended.document["network_state"], ended.document["network_problem"]) == ("up", "")
