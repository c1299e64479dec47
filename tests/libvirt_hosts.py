"""Three hosts with a libvirtd each, started once for all tests of a process that ask for them, and only then."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from migrator.testing.libvirtd import LibvirtHosts, why_not
from tests.conftest import missing

NAMES = ("alpha", "beta", "gamma")
_numbers = itertools.count(1)


@cache
def reason() -> str | None:
    """Return why tests of libvirt cannot run here; ``None`` where they can."""
    try:
        import libvirt  # noqa: F401, PLC0415 - whether it is there
    except ImportError:
        return "there is no libvirt-python: make test installs it"
    return why_not()


@pytest.fixture(scope="session")
def libvirt_daemons() -> Iterator[LibvirtHosts]:
    """The hosts, for all tests of this process: what a test makes there it removes."""
    if why := reason():
        missing(why)
    with tempfile.TemporaryDirectory(prefix="migrator-libvirt-") as directory:
        hosts = LibvirtHosts(*NAMES, directory=Path(directory))
        asyncio.run(hosts.__aenter__())
        try:
            yield hosts
        finally:
            asyncio.run(hosts.__aexit__(None, None, None))


@pytest.fixture
def libvirt_hosts(libvirt_daemons: LibvirtHosts) -> Iterator[LibvirtHosts]:
    """The hosts without a guest, each with its daemon at work, and the network whole; so they are afterwards."""
    asyncio.run(libvirt_daemons.restore())
    yield libvirt_daemons
    asyncio.run(libvirt_daemons.restore())


def guest_name() -> str:
    """Return a name that no other guest of this process has."""
    return f"lv-{next(_numbers)}"
