"""A controller is killed or frozen at a random instant of an evacuation, again and again; the other goes on with it."""

from __future__ import annotations

import os
import random
import re
import sys
import time
from pathlib import Path

import pytest

from bench.machine import describe
from migrator.testing import network
from migrator.testing.lab import binaries
from migrator.testing.postgresql import Postgres
from tests.acceptance.two_controllers import Measured, Standstills, two_controllers
from tests.conftest import missing

#: A controller is replaced in so many seconds at the most, by a lease of half of that, on a machine that is busy.
_MOST_SECONDS = 10.0
#: Of an evacuation that nothing befalls, so that any of it may be hit.
_EVACUATION_SECONDS = 5.0
#: Of those that are killed, and of those that are frozen; and of both together, at length.
_ROUNDS, _SOAK_ROUNDS = 5, 100
_DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
_SECTION = re.compile(r"(?<=<!-- takeovers -->\n).*?(?=<!-- end -->\n)", re.DOTALL)


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


async def rounds(server: Postgres, hows: list[str], seed: int, *, figures: Path | None = None) -> Measured:
    """Let so many controllers go; what it took.

    :param figures: a file to which that is added; all that are there are returned.
    """
    chance = random.Random(seed)
    async with two_controllers(server) as both, Standstills(both.site, both.guests) as watch:
        try:
            for number, how in enumerate(hows):
                after = chance.uniform(0.1, _EVACUATION_SECONDS)
                await both.round(number, how=how, after=after, watch=watch, plans=number % 2 == 0)
        finally:
            if figures is not None:
                both.measured.add_up(figures)
            sys.stdout.write(f"\n{both.measured.rounds} rounds, seed {seed}\n\n{both.measured.table()}\n")
        for leased in both.measured.leased.values():
            assert max(leased, default=0.0) < _MOST_SECONDS, both.measured.table()
        return both.measured


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_gone_at_a_random_instant_it_is_followed_and_every_guest_moves_once(
    postgresql: Postgres, how: str
) -> None:
    await rounds(postgresql, [how] * _ROUNDS, seed=7)


@pytest.mark.soak
async def test_a_hundred_that_are_gone_at_random_instants(postgresql: Postgres) -> None:
    seed = int(os.environ.get("SEED", int(time.time())))
    # In portions, where there is not time for all of them at once: ROUNDS of each, FIGURES that add up.
    count = int(os.environ.get("ROUNDS", _SOAK_ROUNDS))
    # Of two that are killed, or frozen, one plans and one only drives.
    hows = [("killed", "killed", "frozen", "frozen")[number % 4] for number in range(count)]
    figures = Path(os.environ["FIGURES"]) if "FIGURES" in os.environ else None
    if hows:
        measured = await rounds(postgresql, hows, seed, figures=figures)
    else:  # those of earlier portions are told
        measured = Measured()
        measured.add_up(figures or Path(os.devnull))
    if "WRITE" in os.environ:
        text = f"{describe(*map(str, binaries().values()))} · {measured.rounds} times\n\n{measured.table()}\n"
        written, found = _SECTION.subn(lambda _: text, _DOCUMENT.read_text(encoding="utf-8"))
        assert found == 1
        _DOCUMENT.write_text(written, encoding="utf-8")
