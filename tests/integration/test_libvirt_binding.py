"""Without libvirt's Python binding everything goes on; what needs it says in one line what to install."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from socket import AF_UNIX, socket

import pytest

from migrator.core.managed_guest import DaemonAddress
from migrator.hosts.host_config import HostConfig
from migrator.libvirt import binding
from tests.integration.test_site_look import site_of


@pytest.fixture
def no_binding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    binding.load.cache_clear()
    yield
    binding.load.cache_clear()


@pytest.mark.parametrize("optional", [True, False], ids=["auto", "by its URI"])
@pytest.mark.usefixtures("no_binding")
async def test_host_goes_on_without_the_binding(tmp_path: Path, optional: bool) -> None:
    path = tmp_path / "libvirt-sock"
    config = HostConfig(
        name="here",
        processes=False,
        sockets=(f"{tmp_path}/*.qmp",),
        libvirt=DaemonAddress(sockets=(str(path),), optional=optional),
    )
    site = site_of(config)
    try:
        with socket(AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            look = await site.look("here")
    finally:
        await site.close()
    assert look.guests == ()
    assert look.facts.libvirt_error == ("" if optional else binding.MISSING)


async def test_host_that_need_not_have_a_libvirt_and_has_none_says_nothing(tmp_path: Path) -> None:
    address = DaemonAddress(sockets=(f"{tmp_path}/none",), optional=True)
    config = HostConfig(name="here", processes=False, sockets=(f"{tmp_path}/*.qmp",), libvirt=address)
    site = site_of(config)
    try:
        assert (await site.look("here")).facts.libvirt_error == ""
    finally:
        await site.close()
    must = site_of(replace(config, libvirt=replace(address, optional=False)))
    try:
        assert "libvirt is not there: no socket" in (await must.look("here")).facts.libvirt_error
    finally:
        await must.close()
