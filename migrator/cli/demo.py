"""``migrator demo``: three hosts, seven guests, a service; one host is emptied before your eyes, and filled again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from migrator import logs, units
from migrator.cli import INTERRUPTED, Exit, demo_libvirt, remote, remote_queries
from migrator.cli.client import NotReachable, ServiceClient
from migrator.cli.demo_libvirt import LibvirtGuest, libvirt_fleet
from migrator.cli.output import OutputForm
from migrator.core.process.certificates import CA_FILE, CLIENT_FILES, SERVER_FILES
from migrator.errors import MigratorError
from migrator.testing import network
from migrator.testing.guest import Habit, write_image
from migrator.testing.lab import GuestMachine, LabError, LabQemu, until
from migrator.testing.libvirtd import LibvirtUnavailable
from migrator.testing.own_images import own_images
from migrator.testing.site import LabSite

_MIB = 1 << 20
_HOSTS = ("alpha", "beta", "gamma")
#: How long the page is there for who does not press Enter.
_PAGE_SECONDS = 60
#: Of the disk that only one host has: small, as each move of it is a copy over the slowed link.
_DISK_BYTES = 24 * _MIB
#: How long guests, service and its first look may take to be there, on a machine that does much else.
_START_SECONDS = 120.0
_FIGURES = ("mode", "rounds", "time", "downtime", "ceiling", "sent")
#: One guest goes encrypted or not at all, the others plainly.
_ENCRYPTED = '[site]\ntls = "off"\n[policies.secret]\ntls = "require"\n'
#: From here on the table of results has room for all of it.
_WIDE_COLUMNS = 110


@dataclass(frozen=True, kw_only=True)
class _Guest:
    name: str
    what: str
    habit: Habit = field(default_factory=Habit)
    policy: str = "default"
    paused: bool = False
    extra: tuple[str, ...] = ()
    disk: Path | None = None

    @property
    def machine(self) -> GuestMachine:
        return GuestMachine(
            name=self.name, memory_bytes=256 * _MIB, habit=self.habit, extra=self.extra, image=self.disk
        )


def _guests(folder: str = "", disk: Path | None = None) -> tuple[_Guest, ...]:
    """Return the guests.

    :param folder: of the host, that one of them writes to.
    :param disk: path of the disk that one of them has, where every host has a file of its own there.
    """
    return (
        _Guest(name="idle", what="does nothing"),
        _Guest(
            name="web",
            what="rewrites 160 MiB slowly, is secret" + (", has a disk of its host" if disk else ""),
            habit=Habit(region_bytes=160 * _MIB, bytes_per_second=6 * _MIB),
            policy="secret",
            disk=disk,
        ),
        _Guest(
            name="mail",
            what="works for 1 s, rests for 2 s",
            habit=Habit(region_bytes=96 * _MIB, bytes_per_second=40 * _MIB, on_seconds=1, off_seconds=2),
            policy="gentle",
        ),
        _Guest(name="frozen", what="somebody paused it", habit=Habit(region_bytes=64 * _MIB), paused=True),
        _Guest(
            name="batch",
            what="rewrites 160 MiB faster than the link",
            habit=Habit(region_bytes=160 * _MIB, bytes_per_second=200 * _MIB),
        ),
        _Guest(
            name="cold",
            what="may be stopped: policy offline",
            habit=Habit(region_bytes=64 * _MIB, bytes_per_second=20 * _MIB),
            policy="offline",
        ),
        _Guest(
            name="shared",
            what="writes to a folder of its host",
            extra=("-blockdev", f"driver=vvfat,node-name=folder,dir={folder},rw=on"),
        ),
    )


def main(link: str, *, libvirt: bool = False) -> None:
    """Run the demo and exit with its code.

    :param libvirt: show guests of libvirt beside the others.
    """
    gc.enable()
    logs.configure()
    speed = units.rate(link)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupted)
    try:
        if libvirt:
            demo_libvirt.check_possible()
        code = _demo(speed, libvirt=libvirt)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; everything the demo started has been removed")
        code = Exit.CANCELLED
    except (LabError, LibvirtUnavailable, network.NetworkError, MigratorError, TimeoutError) as error:
        print(f"migrator: the demo cannot go on: {error}", file=sys.stderr)
        code = Exit.FAILED
    sys.exit(code)


def _interrupted(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # what was started is removed in peace
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise KeyboardInterrupt from None
    # A task that a KeyboardInterrupt ends has its traceback printed at the end.
    for task in asyncio.all_tasks(loop):
        loop.call_soon_threadsafe(task.cancel)


def _demo(speed: int, *, libvirt: bool) -> Exit:
    from rich.console import Console  # noqa: PLC0415 - slow to import

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)

    def say(text: str) -> None:
        console.print(text, style="bold")

    limited = speed if network.possible() is None else None
    policies = _ENCRYPTED + "".join(
        f'[[guests]]\nmatch = "{guest.name}"\npolicy = "{guest.policy}"\n' for guest in _guests()
    )
    lines: dict[str, str] = {}
    with (
        TemporaryDirectory(prefix="migrator-pki-") as pki,
        LabSite(
            *_HOSTS,
            bytes_per_second=limited,
            extra=policies + (demo_libvirt.CONFIG if libvirt else ""),
            host_extra=lines,
            page=True,
        ) as site,
        _local_disk(site) as disk,
        libvirt_fleet(site, _HOSTS if libvirt else ()) as fleet,
    ):
        lines |= {name: f'tls_dir = "{pki}/{name}"\n{fleet.host_lines.get(name, "")}' for name in _HOSTS}
        site.write_config()
        _make_certificates(Path(pki))
        folder = site.directory / "folder"
        folder.mkdir()
        guests = _guests(str(folder), disk)
        where = "network namespaces" if site.hosts.isolated else f"on loopback ({network.possible()})"
        say(f"Three hosts: {', '.join(_HOSTS)}, {where}; each link carries {units.show_rate(speed)}.")
        machines = {guest.name: guest.machine for guest in guests}
        running = asyncio.run(_boot(site, guests, machines))
        say(
            f"{len(guests)} guests run on alpha, under {running[0].binary.name}, and `migrator serve` looks after them."
        )
        if libvirt:
            version = asyncio.run(fleet.start())
            say(f"{len(demo_libvirt.GUESTS)} more are guests of libvirt {version} there; each host has one.")
        site.serve()
        asyncio.run(site.until_served(within=_START_SECONDS))
        client = ServiceClient(site.server)
        everybody = (*guests, *(demo_libvirt.GUESTS if libvirt else ()))
        _until_known(client, len(everybody))
        say("\n$ migrator plan alpha")
        remote_queries.plan(client, "alpha", None, [], output=OutputForm.TABLE)
        say("\n$ migrator evacuate alpha --wait")
        _or_stop(
            remote.evacuate(client, "alpha", None, "continue", None, [], wait=True, output=OutputForm.TABLE)
        )
        found = asyncio.run(_inspect(site, guests, machines)) | asyncio.run(fleet.inspect())
        say("\nWhat became of them:")
        console.print(_table(client, everybody, found, width=console.width))
        say("$ migrator restore alpha --wait")
        _or_stop(remote.restore(client, "alpha", None, wait=True, output=OutputForm.TABLE))
        home = asyncio.run(_inspect(site, guests, machines)) | asyncio.run(fleet.inspect())
        _show_page(site)
        site.stop()
    lost = [name for name in home if not (found[name].endswith("intact") and home[name].endswith("intact"))]
    back = sum(1 for where in home.values() if where.startswith("alpha"))
    say(
        f"\n{back} of {len(home)} guests run on alpha again, their memory checked. Nothing of it is left running."
    )
    return Exit.FAILED if lost or back != len(home) else Exit.DONE


@contextlib.contextmanager
def _local_disk(site: LabSite) -> Iterator[Path | None]:
    """Make a disk that only the first host has; ``None`` where all hosts have the same files."""
    if not site.hosts.isolated:
        yield None
        return
    with own_images(site) as directory:
        disk, made = directory / "web.img", site.directory / "web.img"
        (habit,) = (guest.habit for guest in _guests() if guest.policy == "secret")
        write_image(made, habit)
        with made.open("ab") as image:
            image.write(b"disk" * (_DISK_BYTES // 4))
        site.host(_HOSTS[0]).run("mv", "--", str(made), str(disk))
        yield disk


def _make_certificates(directory: Path) -> None:
    """Give each host certificates for encrypted streams, as `migrator pki` does."""
    from migrator.pki.authority import Authority  # noqa: PLC0415 - slow to import

    authority = Authority.make(directory / "authority", site="demo")
    for name in _HOSTS:
        issued = authority.issue(name, [name])
        (directory / name).mkdir()
        (directory / name / CA_FILE).write_bytes(authority.pem)
        for certificate, key in (SERVER_FILES, CLIENT_FILES):
            (directory / name / certificate).write_bytes(issued.certificate)
            (directory / name / key).write_bytes(issued.key)


def _show_page(site: LabSite) -> None:
    """Show the service's own page, with the history of the run, until Enter."""
    if not (sys.stdin.isatty() and sys.stdout.isatty() and site.page_url()):
        return
    made = site.command("token", "create", "demo", "--role", "viewer", "--config", str(site.config), "--json")
    if made.returncode == 0:
        print(
            f"\nThe service's own page shows all of it: {site.page_url()}/  (token: {json.loads(made.stdout)['token']})"
        )
        print(f"Enter ends the demo; it ends by itself in {_PAGE_SECONDS} seconds.", flush=True)
        select.select([sys.stdin], [], [], _PAGE_SECONDS)


def _or_stop(code: int) -> None:
    """Stop the whole demo on Ctrl-C, which merely leaves a command that waits."""
    if code == INTERRUPTED:
        raise KeyboardInterrupt


async def _boot(
    site: LabSite, guests: tuple[_Guest, ...], machines: dict[str, GuestMachine]
) -> list[LabQemu]:
    async def booted(guest: _Guest) -> LabQemu:
        qemu = await site.start(machines[guest.name], "alpha")
        await qemu.wait_beating(within=_START_SECONDS)
        return qemu

    running = await asyncio.gather(*(booted(guest) for guest in guests))
    for guest, qemu in zip(guests, running, strict=True):
        if guest.paused:
            await qemu.pause()
    return list(running)


def _until_known(client: ServiceClient, count: int) -> None:
    async def known() -> bool:
        with contextlib.suppress(NotReachable):  # on a busy machine its first answer takes long
            return len(client.get("guests")["items"]) >= count and all(
                host["up"] for host in client.get("hosts")["items"]
            )
        return False

    asyncio.run(until(known, what="the first look at the hosts", within=_START_SECONDS))


async def _inspect(
    site: LabSite, guests: tuple[_Guest, ...], machines: dict[str, GuestMachine]
) -> dict[str, str]:
    """Return for each guest the host it is on, its run state, and whether its memory is whole."""
    found = {}
    for guest in guests:
        instances = site.instances(machines[guest.name])
        if len(instances) != 1:
            found[guest.name] = f"in {len(instances)} processes"
            continue
        qemu = instances[0]
        state = await qemu.run_state()
        await qemu.check_memory()
        found[guest.name] = f"{site.where(qemu)}: {state}, memory intact"
    return found


def _table(
    client: ServiceClient, guests: Sequence[_Guest | LibvirtGuest], found: dict[str, str], *, width: int
) -> Any:
    """Return a table of how each went; on a narrow terminal without what leaves no room for the rest."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - slow to import
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    wide = width >= _WIDE_COLUMNS
    table = Table(box=SIMPLE_HEAD)
    headings = ("guest", "habit", *_FIGURES, "now at")
    shown = [heading for heading in headings if wide or heading not in ("habit", "ceiling")]
    for heading in shown:
        right = heading in ("rounds", "time", "downtime", "sent")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading in _FIGURES)
    ended = {one["guest_name"]: one for one in reversed(client.get("migrations", limit=50)["items"])}
    reasons = []
    for guest in guests:
        one = ended.get(guest.name)
        if one is None or one["state"] != "completed":
            figures: list[Any] = ["stays", *[""] * (len(_FIGURES) - 1)]
            reasons.append(Text(f"  {guest.name} stays: {(one or {}).get('error') or 'no reason is known'}"))
        else:
            figures = [
                f"{one['mode']}, TLS" if one["tls"] else one["mode"],
                str(one["round"]),
                units.show_seconds(one["duration_seconds"] or 0.0),
                _downtime(one),
                "none" if guest.policy == "offline" else units.show_seconds(one["max_downtime_seconds"]),
                units.show_bytes(one["transferred_bytes"]),
            ]
            if one["disk_bytes"]:
                how = "encrypted as its memory" if one["tls"] else "in clear"
                reasons.append(
                    Text(f"  {guest.name} took its disk along: {units.show_bytes(one['disk_bytes'])}, {how}")
                )
        row = dict(zip(headings, (guest.name, guest.what, *figures, found[guest.name]), strict=True))
        table.add_row(*(row[heading] for heading in shown))
    return Group(table, *reasons)


def _downtime(one: Any) -> Any:
    """Show a downtime red where it was above the ceiling."""
    from rich.text import Text  # noqa: PLC0415 - slow to import

    if one["downtime_seconds"] is None:
        return "-"
    style = "bold red" if one["ceiling_exceeded"] else ""
    return Text(units.show_seconds(one["downtime_seconds"]), style=style)
