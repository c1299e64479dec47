"""The service moves a guest with the state of its emulated TPM, whose emulator is started at the target."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.guest import IDLE
from migrator.testing.lab import GuestMachine, Habit, until
from migrator.testing.own_images import own_images
from tests.acceptance.service_site import LiveSite, one_served
from tests.conftest import missing

_PERMANENT = "tpm2-00.permall"


class TpmSite:
    """Two hosts, each with files of its own, and a guest with a TPM on the first."""

    def __init__(self, site: LiveSite, files: Path, habit: Habit) -> None:
        self.site, self.state = site, files / "tpm-state"
        self.machine = GuestMachine(
            name="web",
            habit=habit,
            extra=(
                *("-chardev", f"socket,id=tpm-control,path={files}/tpm-control"),
                *("-tpmdev", "emulator,id=tpm0,chardev=tpm-control", "-device", "tpm-crb,tpmdev=tpm0"),
            ),
        )

    def secret(self, host: str) -> str:
        """Return what the state of the TPM at a host is, in hexadecimal digits."""
        return self.site.hosts[host].run("od", "-An", "-v", "-tx1", str(self.state / _PERMANENT))

    def emulators(self) -> list[int]:
        """Return the pids of the emulators of this site."""
        found = subprocess.run(["pgrep", "-f", f"swtpm.*{self.state}"], capture_output=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def names(self, host: str) -> list[str]:
        return sorted(self.site.hosts[host].run("ls", str(self.state.parent)).split())


@asynccontextmanager
async def tpm_site(habit: Habit = IDLE, **how: Any) -> AsyncIterator[TpmSite]:
    if shutil.which("swtpm") is None:
        missing("there is no swtpm: install the package swtpm")
    if (why := network.possible()) is not None:
        missing(why)
    with LiveSite("a", "b", **how) as site, own_images(site) as files:
        made = TpmSite(site, files, habit)
        alpha = site.hosts["a"]
        alpha.run("mkdir", "-m", "750", str(made.state))
        state, control = f"dir={made.state}", f"type=unixio,path={files}/tpm-control"
        alpha.run("swtpm", "socket", "--tpm2", "--tpmstate", state, "--ctrl", control, "-t", "-d")
        async with one_served(site, made.machine):
            yield made


async def test_its_state_travels_to_an_emulator_that_is_started_there_and_comes_home_again() -> None:
    async with tpm_site() as here:
        secret = here.secret("a")
        for target in ("b", "a"):
            moved = await here.site.cli("migrate", "web", "--to", target, "--wait")
            assert moved.returncode == 0, moved.stdout + moved.stderr + here.site.log()[-3000:]
            assert here.secret(target) == secret
            await until(lambda: len(here.emulators()) == 1, what="one emulator")
        (left,) = here.names("b")
        assert left.startswith("tpm-state.left-")
        kept, left = here.names("a")
        assert (kept, left.startswith("tpm-state.left-")) == ("tpm-state", True)
        (qemu,) = await here.site.running(here.machine)
        assert here.site.where(qemu) == "a"


@pytest.mark.matrix
async def test_what_was_started_there_is_gone_where_the_guest_stays_and_another_state_is_not_touched() -> (
    None
):
    async with tpm_site(
        Habit(region_bytes=16 << 20, bytes_per_second=8 << 20), bytes_per_second=4 << 20
    ) as here:
        (own,) = here.emulators()
        begun = await here.site.post("migrations", guest="web", to="b")
        await here.site.until_state("precopy")
        assert len(here.emulators()) == 2
        assert here.names("b") == ["tpm-state"]
        (waiting,) = [pid for pid, argv in here.site.processes() if "-incoming" in argv]
        os.kill(waiting, signal.SIGKILL)
        await here.site.migration_ended(begun["id"], "failed")
        assert here.emulators() == [own]
        assert here.names("b") == []
        here.site.hosts["b"].run("mkdir", str(here.state))
        here.site.hosts["b"].run("touch", str(here.state / "somebody's"))
        refused = await here.site.cli("migrate", "web", "--to", "b", "--wait")
        assert refused.returncode == 3, refused.stdout + refused.stderr
        assert "tpm-state" in refused.stdout + refused.stderr
        assert here.emulators() == [own]
