"""Held migrations of a service whose hosts lose each other: what ends by itself, and what a person's word does."""

from __future__ import annotations

from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine, until
from tests.acceptance.service_site import MIB, SLOW, LiveSite, Witness, guest, served
from tests.conftest import missing

_FIRST = '[policies.now]\nextends = "postcopy-first"\nmax_bandwidth = "10MiB/s"'


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


def soon_held(site: LiveSite) -> None:
    """Have streams be recovered for a moment only."""
    site.change_config(("[limits]", '[limits]\nstream_recovery = "4s"'))


async def held(site: LiveSite, identifier: str) -> Any:
    async def is_held() -> bool:
        return bool((await site.get(f"migrations/{identifier}"))["state"] == "held")

    await until(is_held, what=f"{identifier} held", within=60)
    return await site.get(f"migrations/{identifier}")


async def cut_while_it_fetches(site: LiveSite, machine: GuestMachine) -> Any:
    with site.crawling():
        begun = await site.post("migrations", guest=machine.name, to="b", policy="now")
        await site.until_state("postcopy", of=begun["id"])
        site.host("b").black_hole()
    return begun


@pytest.mark.timeout(300)
async def test_broken_stream_is_recovered_also_by_the_controller_that_comes_after() -> None:
    machine = guest("db", region=64 * MIB, speed=1 * MIB)
    async with served([machine], speed=SLOW, extra=_FIRST) as site, Witness(site, [machine]):
        identifier = (await cut_while_it_fetches(site, machine))["id"]

        async def waits() -> bool:
            document = await site.get(f"migrations/{identifier}")
            return bool(
                document["state"] == "recovering" and document["waiting_for"].startswith("the network")
            )

        await until(waits, what="a probe that finds the network broken", within=60)
        shown = await site.cli("status", identifier)
        assert "waits for the network" in shown.stdout
        refused = await site.cli("cancel", identifier)
        assert "its stream is being recovered" in refused.stderr
        planned = await site.cli("plan", "a")
        assert planned.returncode == 8
        assert f"its migration {identifier} is recovering" in planned.stdout
        await site.restart()
        await until(waits, what="the next controller's probe", within=60)
        site.host("b").heal()
        ended = await site.migration_ended(identifier, "completed", within=60)
        assert ended["recoveries"] == 1
        await site.everyone_at([machine], "b")


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_held_guest_takes_no_deadly_word_and_ends_by_itself_once_its_hosts_meet_again() -> None:
    machine = guest("db", region=64 * MIB, speed=1 * MIB)
    async with (
        served([machine], speed=SLOW, extra=_FIRST, prepare=soon_held) as site,
        Witness(site, [machine]),
    ):
        begun = await cut_while_it_fetches(site, machine)
        document = await held(site, begun["id"])
        assert document["held_code"] == "postcopy-broken"
        identifier = document["id"]
        assert document["held_until"]
        shown = await site.cli("status", identifier)
        assert "waits for" in shown.stdout
        both = site.instances(machine)
        assert len(both) == 2

        for word in ("source", "lost"):
            refused = await site.cli("resolve", identifier, "--guest-at", word, "--yes")
            assert refused.returncode == 1, refused
            assert "--guest-at destination" in refused.stderr
        dry = await site.post(f"migrations/{identifier}/resolve", guest_at="destination", dry_run=True)
        assert dry["accepted"]
        assert not dry["ends_process"]
        assert any("driven on" in line for line in dry["will"])
        status, problem = await site.try_post(
            f"migrations/{identifier}/resolve", guest_at="destination", agreed="something-else"
        )
        assert (status, problem["code"]) == (409, "conflict"), problem
        assert (await site.get(f"migrations/{identifier}"))["state"] == "held"
        assert all(qemu.alive for qemu in both)

        site.host("b").heal()
        ended = await site.migration_ended(identifier, "completed", within=60)
        assert (ended["held_until"], ended["recoveries"]) == (None, 1)
        assert ended["standstill_seconds"] is not None
        await site.everyone_at([machine], "b")


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_host_whose_guest_is_held_between_two_is_not_empty_for_a_service_that_was_killed() -> None:
    machine = guest("db", region=64 * MIB, speed=1 * MIB)
    async with (
        served([machine], speed=SLOW, extra=_FIRST, prepare=soon_held) as site,
        Witness(site, [machine]),
    ):
        identifier = (await cut_while_it_fetches(site, machine))["id"]
        both = site.instances(machine)
        await site.restart()
        await site.known(1)
        await held(site, identifier)
        for name in ("a", "b"):
            planned = await site.cli("plan", name)
            assert planned.returncode == 8, planned
            left = await site.cli("evacuate", name, "--wait")
            assert left.returncode == 5, left
            assert f"its migration {identifier} is held" in left.stdout
        assert all(qemu.alive for qemu in both)
        site.host("b").heal()
        await site.migration_ended(identifier, "completed", within=150)
        await site.everyone_at([machine], "b")
