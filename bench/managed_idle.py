"""``python -m bench.managed_idle``: what a service costs that knows guests of libvirt and has nothing to do.

The guests are domains of libvirt's test driver in a real libvirtd of their own: none has a QEMU, so that a thousand are
at hand, and everything up to libvirt's API is real. Aim: 200 guests for less than 2 % of a core. ``--seconds 3600`` is
the hour.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bench.figures import table
from bench.machine import describe
from migrator.cli.client import ServiceClient
from migrator.errors import MigratorError
from migrator.testing.libvirtd import LibvirtHosts

_AIM_CORE, _AIM_GUESTS = 0.02, 200
_CHANGES = 100
_PATIENCE_SECONDS = 300.0
_SETTLE_SECONDS = 5.0
_DOMAIN = """<domain type='test'><name>guest-{number:04}</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory>
<vcpu>1</vcpu><os><type>hvm</type></os><on_reboot>restart</on_reboot></domain>"""
#: The service, which asks the daemon for its guests of the test driver where it would for those of QEMU.
_SERVE = """\
import sys
from urllib.parse import quote
from migrator.core.managed_guest import DaemonAddress
DaemonAddress.uri = lambda self, path: f"test+unix:///default?socket={quote(path)}"
sys.argv = ["migrator", "serve", "--config", sys.argv[1]]
from migrator.cli import main
main()
"""


def main(arguments: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.managed_idle", description=__doc__)
    parser.add_argument("--guests", type=int, default=_AIM_GUESTS)
    parser.add_argument("--seconds", type=float, default=600.0, help="watch for so long")
    given = parser.parse_args(arguments)
    print(asyncio.run(_measure(given.guests, given.seconds)))
    return 0


async def _measure(count: int, seconds: float) -> str:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        async with LibvirtHosts("here", directory=directory) as hosts:
            socket = hosts["here"].socket
            uri = f"test+unix:///default?socket={socket}"
            stack.enter_context(_guests(uri, directory, count))
            config = directory / "migrator.toml"
            config.write_text(
                '[http]\nsocket = "api.sock"\nmetrics_listen = "127.0.0.1:0"\n[store]\npath = "state/journal.db"\n'
                f'[[hosts]]\nname = "here"\nlibvirt = "qemu:///system?socket={socket}"\nlook_for = "sockets"\n'
                f'sockets = ["{directory}/*.qmp"]\nrun_dir = "{directory}/run-here"\n',
                encoding="utf-8",
            )
            began = time.monotonic()
            with (directory / "log").open("wb") as log:
                service = subprocess.Popen(
                    [sys.executable, "-c", _SERVE, str(config)], stdout=log, stderr=log
                )
            stack.callback(service.wait)
            stack.callback(service.terminate)
            await _until_known(directory, service, count)
            started = time.monotonic() - began, _cpu_seconds(service.pid)
            await asyncio.sleep(_SETTLE_SECONDS)
            before, began = _cpu_seconds(service.pid), time.monotonic()
            await asyncio.sleep(seconds)
            idle = (_cpu_seconds(service.pid) - before) / (time.monotonic() - began)
            change = await _change(service.pid, uri, min(count, _CHANGES))
    aimed = count == _AIM_GUESTS
    found = [
        ("start, until all are known: wall time", f"{started[0]:.1f} s"),
        ("... CPU time", f"{started[1]:.1f} s"),
        (f"idle for {seconds:g} s, share of a core", f"{idle:.2%}"),
        ("a guest that was paused and resumed, CPU time", f"{change * 1e3:.1f} ms"),
    ]
    aim = ["", "", f"< {_AIM_CORE:.0%}, {'met' if idle < _AIM_CORE else '**not met**'}" if aimed else "", ""]
    rows = [[str(count), *each, judged] for each, judged in zip(found, aim, strict=True)]
    return f"{describe('virsh')}\n\n" + table(["guests of libvirt", "what", "found", "aim"], rows)


@contextmanager
def _guests(uri: str, directory: Path, count: int) -> Iterator[None]:
    """Have guests in a daemon's test driver, which forgets them with its last connection.

    :raise RuntimeError: they are not made.
    """
    with subprocess.Popen(
        ["virsh", "--quiet", "--connect", uri], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as virsh:
        assert virsh.stdin is not None
        for number in range(1, count):  # one is there
            path = directory / f"{number}.xml"
            path.write_text(_DOMAIN.format(number=number, uuid=uuid.uuid4()), encoding="utf-8")
            virsh.stdin.write(f"create {path}\n")
        virsh.stdin.flush()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while _listed(uri) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{_listed(uri)} of {count} guests are made")
            time.sleep(0.2)
        yield
        virsh.stdin.close()


def _listed(uri: str) -> int:
    done = subprocess.run(
        ["virsh", "--quiet", "--connect", uri, "list", "--name"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return len(done.stdout.split())


async def _change(pid: int, uri: str, count: int) -> float:
    """Return the CPU time that a guest costs which is paused and resumed, beside what idling costs."""
    before = _cpu_seconds(pid)
    await asyncio.sleep(10.0)
    idle = (_cpu_seconds(pid) - before) / 10.0
    before, began = _cpu_seconds(pid), time.monotonic()
    await asyncio.to_thread(_pause_guests, uri, count)
    await asyncio.sleep(_SETTLE_SECONDS)
    return (_cpu_seconds(pid) - before - idle * (time.monotonic() - began)) / count


def _pause_guests(uri: str, count: int) -> None:
    """Pause guests and resume them, one after the other."""
    commands = "".join(f"suspend guest-{number:04}\nresume guest-{number:04}\n" for number in range(1, count))
    subprocess.run(
        ["virsh", "--quiet", "--connect", uri],
        input=commands.encode(),
        stdout=subprocess.DEVNULL,
        timeout=120,
        check=True,
    )


async def _until_known(directory: Path, service: subprocess.Popen[bytes], count: int) -> None:
    """Wait until the service shows every guest.

    :raise RuntimeError: with its log, when it ends or does not.
    """
    deadline, known = time.monotonic() + _PATIENCE_SECONDS, 0
    client = ServiceClient(f"unix:{directory}/api.sock")
    while time.monotonic() < deadline and service.poll() is None:
        with suppress(MigratorError):
            known = len((await asyncio.to_thread(client.get, "guests"))["items"])
        if known >= count:
            return
        await asyncio.sleep(0.5)
    raise RuntimeError(f"it shows {known} of {count}: {(directory / 'log').read_text()[-3000:]}")


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its children that live."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return (int(fields[11]) + int(fields[12])) / 100 + sum(_cpu_seconds(int(child)) for child in children)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
