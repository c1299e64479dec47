"""Two versions of the program share a journal, as during a rolling upgrade: either is killed or frozen, many times.

::

    SINCE=v0.1.0 ROUNDS=20 make soak PYTEST_ARGS=tests/acceptance/test_mixed_versions.py
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from migrator.testing import network
from migrator.testing.postgresql import Postgres
from tests.acceptance.two_controllers import Fate, Standstills, two_controllers
from tests.conftest import missing

_TREE = Path(__file__).parents[2]
_ROUNDS, _SINCE = 20, "HEAD~60"
_SCHEMAS = "migrator/store/alembic/versions"
#: Lower than that of any release: what is tested is that the newer one goes first.
_VERSION = "0.0.1"
#: Of an evacuation that nothing befalls, so that any of it may be hit.
_EVACUATION_SECONDS = 5.0


def oldest_alike() -> str:
    """Return the oldest of the last changes whose journal this version can share: one of another schema waits."""
    found = subprocess.run(
        ["git", "rev-list", "--max-count=1", f"{_SINCE}..HEAD", "--", _SCHEMAS],
        cwd=_TREE,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return found.stdout.decode().strip() or _SINCE


def earlier(revision: str, directory: Path) -> Path:
    """Return a tree of the program as it was at a revision of this repository, with a lower version number."""
    packed = subprocess.run(
        ["git", "archive", revision, "migrator"], cwd=_TREE, capture_output=True, check=False, timeout=60
    )
    if packed.returncode:
        missing(f"no earlier version: {packed.stderr.decode().strip()}")
    directory.mkdir()
    subprocess.run(["tar", "-x", "-C", directory], input=packed.stdout, check=True, timeout=60)
    package = directory / "migrator" / "__init__.py"
    text = package.read_text(encoding="utf-8")
    own = next(line for line in text.splitlines() if line.startswith("__version__"))
    package.write_text(text.replace(own, f'__version__ = "{_VERSION}"'), encoding="utf-8")
    return directory


@pytest.mark.soak
async def test_either_of_two_versions_is_followed_by_the_other(postgresql: Postgres, tmp_path: Path) -> None:
    if (why := network.possible()) is not None:
        missing(why)
    seed = int(os.environ.get("SEED", int(time.time())))
    old = earlier(os.environ.get("SINCE") or oldest_alike(), tmp_path / "old")
    chance = random.Random(seed)
    async with (
        two_controllers(postgresql, trees={"one": old}) as both,
        Standstills(both.site, both.guests) as watch,
    ):
        try:
            for number in range(int(os.environ.get("ROUNDS", _ROUNDS))):
                after, how = chance.uniform(0.1, _EVACUATION_SECONDS), chance.choice(("killed", "frozen"))
                plans = chance.random() < 0.5
                await both.round(number, Fate(how, after, plans), watch=watch)
        finally:
            sys.stdout.write(f"\n{both.measured.rounds} rounds, seed {seed}\n\n{both.measured.table()}\n")
