"""`migrator direct` with guests of libvirt beside `virsh migrate` and a bare script, in turns: the same two daemons."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import libvirt
from bench.figures import Figures, ms, paragraphs, table, verdict
from bench.libvirt import GUEST, Libvirtd, Unavailable
from bench.machine import Quiet, describe
from bench.options import GUESTS, MEMORY_BYTES, SETTLE_SECONDS, Options
from bench.ours import Migrator, Outcome
from bench.virsh import Took, move
from migrator.testing.guest import write_image
from migrator.testing.lab import Habit
from migrator.testing.network import LabHosts

_MAX_DOWNTIME_SECONDS = 0.3
#: Beside `virsh migrate`: of its time, and above its downtime at most.
_TIME_RATIO, _DOWNTIME_ABOVE_SECONDS = 1.1, 0.005
#: Of the time of a virsh that was told to do something about a guest that does not converge.
_BUSY_TIME_RATIO = 0.5
#: A guest that writes more than its link carries.
_BUSY_BYTES_PER_SECOND = 200 << 20
_BUSY = Habit(region_bytes=160 << 20, bytes_per_second=_BUSY_BYTES_PER_SECOND)
_LINK_BYTES_PER_SECOND = 100e6
_BUSY_OPTIONS = ("--max-duration", "12s", "--last-resort", "pause", "--postcopy", "allow")
#: Seconds after which a virsh that does not end is broken off.
_GIVE_UP_SECONDS = 75.0
_POSTCOPY_SECONDS = 30
_VIRSH_BUSY = {
    "virsh --auto-converge": ("--auto-converge",),
    f"virsh --timeout {_POSTCOPY_SECONDS} --timeout-postcopy": (
        "--postcopy",
        *("--timeout", str(_POSTCOPY_SECONDS), "--timeout-postcopy"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class BusyMove:
    """One move of a guest that does not converge by itself."""

    seconds: float
    #: ``None``: it did not end.
    downtime_seconds: float | None
    how: str


class LibvirtPair:
    """Two libvirtd between which guests are moved by either."""

    def __init__(self, alpha: Libvirtd, beta: Libvirtd, directory: Path, binary: Path) -> None:
        self.alpha, self.beta = alpha, beta
        self._image, self._binary = directory / "guest.img", binary
        self._migrator = Migrator(directory / "migrator")

    async def prepare(self) -> None:
        """Have both find out once what QEMU can do, and set their guests' numbers apart."""
        write_image(self._image)
        await self.beta.create(self._image, self._binary)
        await self.beta.destroy()
        for mover in (self.virsh, self.bare, self.ours):
            await mover(Habit())

    async def _create(self) -> None:
        await self.alpha.create(self._image, self._binary, memory_bytes=MEMORY_BYTES)

    async def virsh(self, habit: Habit, *options: str) -> Took:
        """Move a guest by ``virsh migrate``."""
        write_image(self._image, habit)
        return await move(
            self.alpha,
            self.beta,
            self._create,
            *("--unsafe", *options),
            max_downtime_seconds=_MAX_DOWNTIME_SECONDS,
        )

    async def bare(self, habit: Habit) -> Took:
        """Move a guest by :mod:`bench.bare_libvirt`."""
        write_image(self._image, habit)

        async def script() -> None:
            await self._migrator.python(
                *("-m", "bench.bare_libvirt", self.alpha.uri, self.beta.uri, GUEST, self.beta.host.address)
            )

        return await move(
            self.alpha, self.beta, self._create, command=script, max_downtime_seconds=_MAX_DOWNTIME_SECONDS
        )

    async def ours(self, habit: Habit, *options: str, mode: str = "precopy") -> Took:
        """Move a guest by ``migrator direct``."""
        write_image(self._image, habit)
        outcome: list[Outcome] = []

        async def direct() -> None:
            outcome.append(
                await self._migrator.direct(
                    f"qemu:///system?socket={self.alpha.socket}&guest={GUEST}",
                    f"qemu:///system?socket={self.beta.socket}",
                    *("--listen", f"tcp:{self.beta.host.address}:0", "--accept", "libvirt-unsafe-cache"),
                    *("--max-downtime", f"{_MAX_DOWNTIME_SECONDS * 1e3:.0f}ms"),
                    *options,
                    mode=mode,
                )
            )

        took = await move(self.alpha, self.beta, self._create, command=direct)
        ended = outcome[0]
        parts = {
            "start and end of the process": ended.wall_seconds
            - ended.preflight_seconds
            - ended.duration_seconds,
            "preflight": ended.preflight_seconds,
            "migration": ended.duration_seconds,
        }
        return Took(
            total_seconds=took.total_seconds, downtime_seconds=took.downtime_seconds, parts_seconds=parts
        )


async def run(options: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text.

    :raise Unavailable: where there can be no two libvirtd.
    """
    if reason := libvirt.why_not():
        raise Unavailable(reason)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        hosts = stack.enter_context(LabHosts("alpha", "beta", isolated=True))
        alpha, beta = [
            await stack.enter_async_context(Libvirtd(host, directory / host.name, cgroups=False))
            for host in hosts
        ]
        pair = LibvirtPair(alpha, beta, directory, options.binary)
        await pair.prepare()
        runs = options.runs or 8
        text = await _beside(pair, runs, quiet)
        for host in hosts:
            host.set_speed(_LINK_BYTES_PER_SECOND)
        text += await _busy(pair, max(1, runs // 4), quiet)
    return paragraphs(
        f"{describe(str(options.binary), 'virsh')} · {runs} runs of each, in turns · {quiet}",
        "Two libvirtd in namespaces of their own, without control groups; a guest of libvirt of 512 MiB (TCG), a "
        f"downtime limit of {_MAX_DOWNTIME_SECONDS * 1e3:.0f} ms on each. The bare script (`bench/bare_libvirt.py`) "
        "has libvirt move the guest by its Python binding, with no check, no record and nobody who looks on. "
        "Downtime is from STOP to RESUME by the clocks of both QEMUs. Milliseconds: median (minimum – maximum).",
        *text,
    )


async def _beside(pair: LibvirtPair, runs: int, quiet: Quiet) -> list[str]:
    rows, parts = [], []
    for guest, habit in GUESTS.items():
        print(f"libvirt: {guest}", flush=True)
        movers: dict[str, Callable[[], Awaitable[Took]]] = {
            "virsh": partial(pair.virsh, habit),
            "bare": partial(pair.bare, habit),
            "ours": partial(pair.ours, habit, "--postcopy", "never"),
            "virsh, postcopy": partial(pair.virsh, habit, "--postcopy"),
            "ours, postcopy": partial(pair.ours, habit, "--postcopy", "allow"),
        }
        took: dict[str, list[Took]] = {name: [] for name in movers}
        for _ in range(runs):
            for name, mover in movers.items():
                await quiet.wait()
                took[name].append(await mover())
        for postcopy, suffix in (("not allowed", ""), ("allowed", ", postcopy")):
            for what, field, limit in (
                ("time", "total_seconds", _times),
                ("downtime", "downtime_seconds", _above),
            ):
                figures = {
                    name: Figures.of(getattr(one, field) for one in moves) for name, moves in took.items()
                }
                theirs, ours = figures[f"virsh{suffix}"], figures[f"ours{suffix}"]
                bare = str(figures["bare"]) if not suffix else "–"
                rows.append([guest, postcopy, what, str(theirs), bare, str(ours), *limit(ours, theirs)])
        parts += [
            [guest, part, str(Figures.of(one.parts_seconds[part] for one in took["ours"]))]
            for part in took["ours"][0].parts_seconds
        ]
    about = (
        "**Time** from the command to its end, and **downtime**, where postcopy is allowed to neither or to both, but "
        "not begun (`migrator direct --postcopy never` or `allow`, `virsh migrate` without or with `--postcopy`): a "
        "QEMU that may be sent to postcopy takes longer to take memory in:"
    )
    columns = ["guest", "postcopy", "what", "virsh migrate", "bare script", "migrator direct"]
    return [
        about,
        table([*columns, "aim", "verdict"], rows),
        "Where the time of `migrator direct --postcopy never` goes:",
        table(["guest", "part", "time"], parts),
    ]


def _times(ours: Figures, theirs: Figures) -> tuple[str, str]:
    return verdict(ours, _TIME_RATIO * theirs.median, f"{_TIME_RATIO} × virsh")


def _above(ours: Figures, theirs: Figures) -> tuple[str, str]:
    return verdict(
        ours, theirs.median + _DOWNTIME_ABOVE_SECONDS, f"virsh + {_DOWNTIME_ABOVE_SECONDS * 1e3:.0f} ms"
    )


async def _busy(pair: LibvirtPair, runs: int, quiet: Quiet) -> list[str]:
    took: dict[str, list[BusyMove]] = {}
    for _ in range(runs):
        for name, options in _VIRSH_BUSY.items():
            print(f"libvirt: {name}", flush=True)
            await quiet.wait()
            took.setdefault(name, []).append(await _virsh_busy(pair, options))
        print("libvirt: migrator direct, a busy guest", flush=True)
        await quiet.wait()
        took.setdefault("migrator", []).append(await _ours_busy(pair))
    ours = took.pop("migrator")
    shown = Figures.of(one.seconds for one in ours)
    rows = []
    for name, theirs in took.items():
        ended = all(one.downtime_seconds is not None for one in theirs)
        peer = Figures.of(one.seconds for one in theirs)
        aim = verdict(shown, _BUSY_TIME_RATIO * peer.median, f"{_BUSY_TIME_RATIO} × its time")
        if not ended:
            aim = "ends, where it does not", "aim met"
        rows.append([name, _moves(theirs), _moves(ours), *aim])
    text = (
        f"**A guest that does not converge by itself**: it writes {_show(_BUSY_BYTES_PER_SECOND)} to "
        f"{_show(_BUSY.region_bytes)}, and the link carries {_show(_LINK_BYTES_PER_SECOND)}, each a second; `migrator "
        f"direct {' '.join(_BUSY_OPTIONS)}`. A virsh that has not ended after {_GIVE_UP_SECONDS:.0f} s is broken off. "
        "Time, and downtime in brackets:"
    )
    return [text, table(["beside", "its", "migrator direct", "aim", "verdict"], rows)]


def _show(amount: float) -> str:
    return f"{amount / (1 << 20):.0f} MiB"


def _moves(moves: list[BusyMove]) -> str:
    return ", ".join(
        f"{one.seconds:.1f} s ({one.how}"
        + (f", {ms(one.downtime_seconds)} ms)" if one.downtime_seconds is not None else ")")
        for one in moves
    )


async def _virsh_busy(pair: LibvirtPair, options: tuple[str, ...]) -> BusyMove:
    began = time.monotonic()
    moving = asyncio.create_task(pair.virsh(_BUSY, *options))
    done, _ = await asyncio.wait({moving}, timeout=_GIVE_UP_SECONDS + SETTLE_SECONDS)
    if done:
        took = moving.result()
        return BusyMove(seconds=took.total_seconds, downtime_seconds=took.downtime_seconds, how="moved")
    with suppress(Unavailable):
        await pair.alpha.virsh("domjobabort", GUEST)
    with suppress(Unavailable):
        await moving
    return BusyMove(seconds=time.monotonic() - began, downtime_seconds=None, how="did not end")


async def _ours_busy(pair: LibvirtPair) -> BusyMove:
    took = await pair.ours(_BUSY, *_BUSY_OPTIONS, mode="")
    return BusyMove(seconds=took.total_seconds, downtime_seconds=took.downtime_seconds, how="moved")
