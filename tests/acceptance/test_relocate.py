"""A guest that is shut off moves: its disks are copied, and what starts it comes with them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from migrator.testing import network
from tests.acceptance.service_site import MIB
from tests.acceptance.test_service_disks import DiskSite, disk_site
from tests.conftest import missing
from tests.disks import contents


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


def described(here: DiskSite, host: str) -> list[str]:
    """Return the command line of the guest, as its host's QEMU was started."""
    (qemu,) = here.site.instances(here.machine)
    argv = Path(f"/proc/{qemu.pid}/cmdline").read_bytes().split(b"\0")[:-1]
    words = [word.decode() for word in argv]
    for option in ("-qmp", "-pidfile"):
        while option in words:
            at = words.index(option)
            del words[at : at + 2]
    path = here.images / "web.guest"
    file = here.site.directory / "description"
    file.write_text(json.dumps(words))
    here.site.hosts[host].run("cp", "--", str(file), str(path))
    return ["relocate", str(path), "--config", str(here.site.config)]


async def test_a_guest_that_is_shut_off_is_copied_with_what_starts_it_and_starts_there() -> None:
    async with disk_site(size_bytes=4 * MIB) as here:
        command = described(here, "a")
        running = await here.site.cli(*command, "--from", "a", "--to", "b")
        assert running.returncode == 2, running.stdout + running.stderr
        assert "is not shut off" in running.stdout + running.stderr
        await here.end()
        old = contents(here.site, here.site.hosts["a"], here.image)
        moved = await here.site.cli(*command, "--from", "a", "--to", "b")
        assert moved.returncode == 0, moved.stdout + moved.stderr + here.site.log()[-3000:]
        assert here.site.instances(here.machine) == []
        assert here.names("b") == ["disk.img", "web.guest"]
        assert all(".left-" in name for name in here.names("a"))
        assert contents(here.site, here.site.hosts["b"], here.image) == old
        script = here.site.hosts["b"].run("cat", str(here.images / "web.guest"))
        assert str(here.machine.uuid) in shlex.join(json.loads(script))
        await here.site.boot(here.machine, "b")
