"""Targets that cannot take a guest, each in its own way: the guest runs on, the reason is said, nothing is left."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.testing import network
from migrator.testing.lab import binaries
from tests.acceptance.service_site import SLOW, Witness, guest, made, small_disk
from tests.conftest import missing

#: A QEMU that is asked what it knows answers; one that shall take a guest dies, once a condition is true.
_DIES = """#!/bin/sh
case " $* " in
*" -incoming "*) {qemu} "$@" & until {true}; do sleep 0.02; done; kill -9 $!; exit 1;;
esac
exec {qemu} "$@"
"""
#: A TCP connection of its host is established.
_STREAM_COMES = "grep -q ' 01 ' /proc/net/tcp"
#: Leaves a QEMU in the background as a unit would, and ends well; but that QEMU does not live.
_DIES_IN_THE_BACKGROUND = (
    'qemu-system-x86_64 -M none -display none -daemonize -pidfile "$0/p" -qmp "unix:$1,server=on,wait=off" '
    '&& kill -9 "$(cat "$0/p")"'
)
_SLEEP = str(7_000_000 + os.getpid())


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


def sleeps() -> list[str]:
    """Processes of a start command that hangs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if _SLEEP in path.read_text(errors="replace").split("\0"):
                found.append(path.parent.name)
        except OSError:
            pass  # it ended meanwhile
    return found


def template(*words: str) -> str:
    return f'launch = "template"\ntemplate = {json.dumps(list(words))}\nstart_timeout = "500ms"\n'


@pytest.mark.matrix
async def test_every_bad_target_gives_its_reason_and_the_guest_ends_at_the_good_one(tmp_path: Path) -> None:
    machine = guest("web")
    qemu = str(next(iter(binaries().values())))
    for name, true in (("dies", "true"), ("later", _STREAM_COMES)):
        (tmp_path / name).write_text(_DIES.format(qemu=qemu, true=true))
        (tmp_path / name).chmod(0o755)
    short = 'start_timeout = "500ms"\n'
    bad = {
        "noqemu": ('qemu = "/nowhere/qemu-system-x86_64"\n', "no /nowhere/qemu-system-x86_64, as configured"),
        "full": (short, "No space left on device|I/O error"),
        "fails": (
            template("sh", "-c", "echo no such bridge >&2; exit 3"),
            "ended with status 3: no such bridge",
        ),
        "hangs": (template("sleep", _SLEEP), "sleep did not come up within 0.5 s"),
        "rubbish": (template("sh", "-c", "echo '{}{{\\x01'"), r"was started, but .* it said: \{\}\{\{"),
        "ghost": (template("sh", "-c", _DIES_IN_THE_BACKGROUND, "{run_dir}", "{qmp}"), "was started, but"),
        "dies": (f'qemu = "{tmp_path}/dies"\n', "ended right after its start"),
        "later": (f'qemu = "{tmp_path}/later"\n', "the destination's process has ended"),
        "nodisk": ("", "refused by preflight: .* does not exist|is not there|no such file"),
    }
    extra = {name: lines for name, (lines, _) in bad.items()}
    images = tmp_path / "images"
    images.mkdir()
    machine = replace(machine, image=images / "disk.img")
    async with made([machine], "a", *bad, "good", host_extra=extra, speed=SLOW) as site:
        site.change_config(("[limits]\n", '[limits]\nattempts = 20\nfirst_pause = "5ms"\n'))
        # The fullest is taken last.
        site.change_host("good", ('memory = "4GiB"', 'memory = "512MiB"'))
        hidden = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs tmpfs {tmp_path} && exec "$@"', "sh"]
        prefix = [*site.host("nodisk").prefix, *hidden]
        site.change_host("nodisk", (json.dumps(list(site.host("nodisk").prefix)), json.dumps(prefix)))
        with small_disk(site.directory / "run-full", "64k"):
            (site.directory / "run-full" / "filler").write_bytes(b"x" * (60 << 10))
            site.serve()
            await site.until_served()
            await site.known(1)
            async with Witness(site, [machine]):
                begun = await site.post("hosts/a/evacuate")
                ended = await site.ended(begun["id"], "completed")
                assert ended["guests"][0]["target"] == "good"
            failed = {each["destination"]: each for each in await site.migrations("failed")}
            assert set(failed) == set(bad)
            for name, (_, reason) in bad.items():
                assert re.search(reason, failed[name]["error"]), (name, failed[name]["error"])
                assert "\n" not in failed[name]["error"]
                assert site.left_in(name) == (["filler"] if name == "full" else [])
            assert sleeps() == []
            await site.everyone_at([machine], "good")
