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
from tests.acceptance.two_controllers import HOWS, Fate, Measured, Standstills, two_controllers
from tests.conftest import missing

#: A controller is replaced in so many seconds at the most, by a lease of half of that, on a machine that is busy.
_MOST_SECONDS = 10.0
#: Of an evacuation that nothing befalls, so that any of it may be hit.
_EVACUATION_SECONDS = 5.0
#: In each, one is killed, and then one is frozen: in two of them each of the one that plans and one that drives. At
#: length, one of these befalls one of them.
_ROUNDS, _SOAK_ROUNDS = 2, 100
#: Between two looks at the guests where the standstill is not what is measured.
_SELDOM_SECONDS = 0.06
_DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
_SECTION = re.compile(r"(?<=<!-- takeovers -->\n).*?(?=<!-- end -->\n)", re.DOTALL)


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


async def rounds(
    server: Postgres,
    fates: list[list[Fate]],
    seed: int,
    *,
    figures: Path | None = None,
    interval_seconds: float = 0.02,
) -> Measured:
    """Let so many controllers go, in so many evacuations; what it took.

    :param figures: a file to which that is added; all that are there are returned.
    :param interval_seconds: between two looks at the guests.
    """
    async with (
        two_controllers(server) as both,
        Standstills(both.site, both.guests, interval_seconds=interval_seconds) as watch,
    ):
        try:
            for number, these in enumerate(fates):
                await both.round(number, *these, watch=watch)
        finally:
            if figures is not None:
                both.measured.add_up(figures)
            sys.stdout.write(f"\n{both.measured.rounds} rounds, seed {seed}\n\n{both.measured.table()}\n")
        for leased in both.measured.leased.values():
            assert max(leased, default=0.0) < _MOST_SECONDS, both.measured.table()
        return both.measured


@pytest.mark.timeout(600)
async def test_gone_at_a_random_instant_it_is_followed_and_every_guest_moves_once(
    postgresql: Postgres,
) -> None:
    chance = random.Random(7)
    fates = [
        [
            Fate(how, chance.uniform(0.1, _EVACUATION_SECONDS / 2), plans=(number + place) % 2 == 0)
            for place, how in enumerate(HOWS)
        ]
        for number in range(_ROUNDS)
    ]
    await rounds(postgresql, fates, seed=7, interval_seconds=_SELDOM_SECONDS)


@pytest.mark.soak
async def test_a_hundred_that_are_gone_at_random_instants(postgresql: Postgres) -> None:
    seed = int(os.environ.get("SEED", int(time.time())))
    # In portions, where there is not time for all of them at once: ROUNDS of each, FIGURES that add up.
    count = int(os.environ.get("ROUNDS", _SOAK_ROUNDS))
    # Of two that are killed, or frozen, one plans and one only drives.
    chance = random.Random(seed)
    fates = [
        [
            Fate(
                ("killed", "killed", "frozen", "frozen")[number % 4],
                chance.uniform(0.1, _EVACUATION_SECONDS),
                plans=number % 2 == 0,
            )
        ]
        for number in range(count)
    ]
    figures = Path(os.environ["FIGURES"]) if "FIGURES" in os.environ else None
    if fates:
        measured = await rounds(postgresql, fates, seed, figures=figures)
    else:  # those of earlier portions are told
        measured = Measured()
        measured.add_up(figures or Path(os.devnull))
    if "WRITE" in os.environ:
        text = f"{describe(*map(str, binaries().values()))} · {measured.rounds} times\n\n{measured.table()}\n"
        written, found = _SECTION.subn(lambda _: text, _DOCUMENT.read_text(encoding="utf-8"))
        assert found == 1
        _DOCUMENT.write_text(written, encoding="utf-8")
