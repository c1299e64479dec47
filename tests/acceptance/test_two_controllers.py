"""Two commands on one pair, through different monitors and each with a state directory of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from migrator.testing.lab import Lab, Pair, until
from tests.command import DOOMED, Command, Ended, addresses, direct, direct_doomed, started
from tests.invariants import settings, witness

MARK = {"path": "/objects/migrator-driver", "property": "identity"}


def stopped(command: Command) -> bool:
    return Path(f"/proc/{command.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@asynccontextmanager
async def frozen(pair: Pair, step: str) -> AsyncIterator[Command]:
    """A command that was stopped at this step."""
    arguments = ("direct", *addresses(pair), "--json", "--postcopy", "never")
    async with started(*arguments, program=DOOMED, variables={"FATE": f"STOP {step}"}) as command:
        await until(lambda: stopped(command), what="the command is stopped")
        yield command


async def second(pair: Pair, tmp_path: Path, *options: str) -> Ended:
    """Another command, that knows nothing of the first."""
    source, destination = pair.source.rescue, pair.destination.rescue
    arguments = ("--source", f"unix:{source}", "--destination", f"unix:{destination}", "--json", *options)
    variables = {"XDG_STATE_HOME": str(tmp_path / "another")}
    async with started("direct", *arguments, variables=variables) as command:
        return await command.ended()


@pytest.mark.parametrize(
    "step",
    [
        "after record.begin",
        "before destination.listen",
        pytest.param("before source.migrate", marks=pytest.mark.matrix),
        pytest.param("before source.switch", marks=pytest.mark.matrix),
        "before destination.cont",
    ],
)
async def test_the_second_is_told_who_drives_the_pair_and_touches_nothing(
    lab: Lab, one_version: Path, tmp_path: Path, step: str
) -> None:
    pair = await lab.pair(source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with frozen(pair, step) as first:
            ended = await second(pair, tmp_path)
            assert ended.code == 3
            assert "driven-elsewhere" in ended.codes
            assert f"pid {first.pid} on " in ended.document["findings"][0]["message"]
            first.signal(signal.SIGCONT)
            assert (await first.ended()).code == 0
        await seen.verify("completed")
    async with pair.destination.monitor() as monitor:
        objects = await monitor.execute("qom-list", path="/objects")
    assert "migrator-driver" not in {each["name"] for each in objects}, "the mark is gone"


async def test_one_that_died_is_followed(lab: Lab, one_version: Path, tmp_path: Path) -> None:
    pair = await lab.pair(source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        dead = await direct_doomed(pair, "KILL before destination.enable", "--postcopy", "never")
        assert dead.code == -signal.SIGKILL
        async with pair.source.monitor() as monitor:
            assert "migrator direct" in await monitor.execute("qom-get", MARK)
        assert (await second(pair, tmp_path)).code == 0
        assert (await direct(pair)).state == "completed", "its record sees what became of the guest"
        await seen.verify("completed")


async def test_a_source_that_keeps_its_guest_keeps_no_mark(lab: Lab) -> None:
    pair = await lab.pair()
    before = await settings(pair.source)
    giving_up = ("--policy", "gentle", "--max-bandwidth", "1MiB/s", "--max-duration", "300ms")
    arguments = ("direct", *addresses(pair), *giving_up)
    async with started(*arguments, variables=dict(os.environ)) as command:
        assert (await command.ended()).code == 1
    assert await settings(pair.source) == before
    async with pair.source.monitor() as monitor:
        assert "migrator-driver" not in str(await monitor.execute("qom-list", path="/objects"))
