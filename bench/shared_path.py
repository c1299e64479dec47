"""Guests that share one narrow path: a host is emptied over it, twice, by a service that was told nothing of the path.

The first plan believes the card; the second one knows what the streams of the first evacuation showed.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.figures import ms, paragraphs, table
from bench.libvirt import Unavailable
from bench.machine import Quiet, describe
from bench.options import SETTLE_SECONDS, Options
from migrator.testing import network
from migrator.testing.guest import BEAT_SECONDS
from migrator.testing.lab import GuestMachine, Habit
from migrator.testing.site import LabSite

_MIB = 1 << 20
_MBIT = 1e6 / 8
_PATH_MBIT = 60
#: What a Linux guest that idles has touched, and what its clock and its kernel write.
_IDLE = Habit(region_bytes=96 * _MIB, bytes_per_second=0.3e6)
_MEMORY_BYTES = 192 * _MIB
_HOSTS = ("alpha", "beta")
_POLICY = "narrow"
_CEILING_SECONDS = 0.3
_PATIENCE_SECONDS = 600.0
#: Aims: downtime, whole time of what the bytes take the link, plan, and silence beside the reported downtime.
_DOWNTIME_SECONDS, _WHOLE_RATIO, _PLAN_RATIO, _SILENCE_SECONDS = 0.1, 1.1, 0.15, 0.05


@dataclass(frozen=True, kw_only=True)
class _Guest:
    name: str
    state: str
    mode: str
    downtime_seconds: float
    silence_seconds: float
    max_throttle_ratio: float


@dataclass(frozen=True, kw_only=True)
class _Evacuation:
    """One evacuation, and what its plan said before."""

    count: int
    #: 1: the path was never measured.
    number: int
    planned: tuple[float, float, float]
    notes: Sequence[str]
    took_seconds: float
    #: That went over the link, headers included.
    sent_bytes: int
    guests: Sequence[_Guest]

    @property
    def of_link(self) -> float:
        """Return the whole time as a multiple of what the bytes that were sent take the link."""
        return self.took_seconds / (self.sent_bytes / (_PATH_MBIT * _MBIT))

    @property
    def plan_error(self) -> float:
        """Return how far the plan's middle was off, as a share of the truth."""
        return self.planned[1] / self.took_seconds - 1


async def run(options: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text.

    :raise Unavailable: where there can be no hosts with links of a set speed.
    """
    if reason := network.possible():
        raise Unavailable(reason)
    found = []
    for count, times in ((3, 2), (10, 1)) if options.whole else ((3, 2),):
        for _ in range(options.runs or 1):
            await quiet.wait()
            found += await _evacuations(count, options, times=times)
    return paragraphs(
        f"{describe(str(options.binary))} · {quiet}",
        f"Two namespaces, the source's link slowed to {_PATH_MBIT} Mbit/s by `tc tbf`; nobody told the service "
        f"how fast it is (it assumes 10 Gbit/s). Idle guests (TCG, {_MEMORY_BYTES // _MIB} MiB, "
        f"{_IDLE.region_bytes // _MIB} MiB of them touched, 0.3 MB/s written, as by an idle Linux) leave it all at "
        f"once, under a ceiling of {ms(_CEILING_SECONDS)} ms, and once more after they were brought home. Silence is "
        "between two beats of the guest (every 20 ms), wherever it runs; bytes are those that went over the link, "
        "headers included; the plan's interval is from p10 to p90.",
        _table(found),
        _aims(found),
    )


async def _evacuations(count: int, options: Options, *, times: int) -> list[_Evacuation]:
    """Empty a host, bring the guests home, and empty it again, so many times."""
    machines = [
        GuestMachine(name=f"vm-{number}", memory_bytes=_MEMORY_BYTES, habit=_IDLE, image_locking="off")
        for number in range(count)
    ]
    policy = f'[policies.{_POLICY}]\nmax_downtime = "{ms(_CEILING_SECONDS)}ms"'
    found = []
    room = dict.fromkeys(_HOSTS, "cpu_overcommit = 16.0")
    with LabSite(*_HOSTS, extra=policy, host_extra=room) as site:
        site.host("alpha").set_speed(_PATH_MBIT * _MBIT)
        await asyncio.gather(*(site.boot(each, "alpha", binary=options.binary) for each in machines))
        site.serve()
        await site.until_served()
        for number in range(1, times + 1):
            await asyncio.to_thread(_known, site, count)
            await asyncio.sleep(SETTLE_SECONDS)
            one = await _evacuate(site, machines, number)
            print(f"shared path: {count} guests, evacuation {number}: {one}", file=sys.stderr, flush=True)
            found.append(one)
            if number < times:
                done = await asyncio.to_thread(
                    site.command, "restore", "alpha", "--wait", timeout=_PATIENCE_SECONDS
                )
                if done.returncode:
                    raise RuntimeError(f"migrator restore: {done.stdout}{done.stderr}{site.log()[-3000:]}")
    return found


def _known(site: LabSite, count: int) -> None:
    ends = time.monotonic() + 60.0
    while time.monotonic() < ends:
        hosts, guests = _ask(site, "hosts")["items"], _ask(site, "guests")["items"]
        if all(host["up"] for host in hosts) and len(guests) == count:
            return
        time.sleep(0.2)
    raise RuntimeError(f"the guests were not found: {site.log()[-3000:]}")


def _ask(site: LabSite, *words: str) -> Any:
    done = site.command(*words, "--json")
    if not done.stdout:  # a plan that has to leave a stranger's guest where it is says so by its exit status
        raise RuntimeError(f"migrator {' '.join(words)}: {done.stdout}{done.stderr}{site.log()[-3000:]}")
    return json.loads(done.stdout)


def _sent(site: LabSite) -> int:
    """Return the bytes that went out over the source's link so far.

    As what slows the link counts them: an interface counts the headers of large segments once, though they go out in
    packets of 1,500 bytes.
    """
    queues = json.loads(site.host("alpha").run("tc", "-s", "-j", "qdisc"))
    return sum(queue["bytes"] for queue in queues if queue["kind"] == "tbf")


async def _evacuate(site: LabSite, machines: Sequence[GuestMachine], number: int) -> _Evacuation:
    plan = await asyncio.to_thread(_ask, site, "plan", "alpha", "--policy", _POLICY)
    words = ("evacuate", "alpha", "--policy", _POLICY, "--wait", "--json")
    before = await asyncio.to_thread(_sent, site)
    silence = _Silence(site.directory, machines)
    watching = asyncio.create_task(silence.run(), name="silence")
    try:
        done = await asyncio.to_thread(site.command, *words, timeout=_PATIENCE_SECONDS)
    finally:
        watching.cancel()
    if not done.stdout:
        raise RuntimeError(f"migrator {' '.join(words)}: {done.stderr}{site.log()[-3000:]}")
    found = json.loads(done.stdout)
    guests = []
    for each in found["guests"]:
        if each["guest"] not in silence.keys:
            continue  # of somebody else on this machine
        last = await asyncio.to_thread(_ask, site, "status", each["migration"]) if each["migration"] else {}
        guests.append(
            _Guest(
                name=each["guest_name"],
                state=last.get("state", "failed"),
                mode=last.get("mode", ""),
                downtime_seconds=last.get("downtime_seconds") or 0.0,
                silence_seconds=silence.longest.get(each["guest"], 0.0),
                max_throttle_ratio=last.get("max_throttle_ratio", 0.0),
            )
        )
    took = datetime.fromisoformat(found["ended_at"]) - datetime.fromisoformat(found["created_at"])
    return _Evacuation(
        count=len(machines),
        number=number,
        planned=(plan["takes_p10_seconds"], plan["takes_p50_seconds"], plan["takes_p90_seconds"]),
        notes=[each["note"] for each in plan.get("paths", ())],
        took_seconds=took.total_seconds(),
        sent_bytes=await asyncio.to_thread(_sent, site) - before,
        guests=guests,
    )


class _Silence:
    """Longest times without a beat of each guest, by the files of the serial ports of all its processes.

    When a beat came is told by the file, so that nothing depends on how late it is looked at: of several beats that
    came between two looks all but one are taken to have come in time.
    """

    def __init__(self, directory: Path, machines: Sequence[GuestMachine]) -> None:
        self._directory = directory
        self.keys = {str(machine.uuid): machine.uuid.hex[:8] for machine in machines}
        self.longest: dict[str, float] = {}
        self._files: Mapping[str, Sequence[Path]] = {}

    async def run(self) -> None:
        """Look every few milliseconds until cancelled."""
        beaten: dict[str, tuple[int, float]] = {}
        looking = asyncio.create_task(self._find_files(), name="serial ports")
        try:
            while True:
                for key, paths in self._files.items():
                    found = [path.stat() for path in paths if path.exists()]
                    count, at = (
                        sum(one.st_size for one in found),
                        max((one.st_mtime for one in found), default=0.0),
                    )
                    before, since = beaten.get(key, (count, at))
                    if count > before and before:
                        silence = at - since - (count - before - 1) * BEAT_SECONDS
                        self.longest[key] = max(self.longest.get(key, 0.0), silence)
                    beaten[key] = (count, at)
                await asyncio.sleep(0.005)
        finally:
            looking.cancel()

    async def _find_files(self) -> None:
        known: dict[str, dict[Path, None]] = {key: {} for key in self.keys}
        while True:
            for key, paths in (await asyncio.to_thread(self._found)).items():
                known[key] |= dict.fromkeys(paths)
            self._files = {key: [*paths] for key, paths in known.items()}
            await asyncio.sleep(0.1)

    def _found(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {key: [] for key in self.keys}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                argv = (path / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
            except OSError:
                continue
            for key in self.keys.keys() & set(argv):
                found[key] += [
                    Path(part.removeprefix("path="))
                    for word in argv
                    if "serial" in word
                    for part in word.split(",")
                    if part.startswith("path=/")
                ]
        return found


def _table(found: Sequence[_Evacuation]) -> str:
    rows = []
    for one in found:
        low, middle, high = one.planned
        rows.append(
            [
                f"{one.count}, {'first' if one.number == 1 else 'second'} time",
                f"{middle:.1f} s ({low:.1f} – {high:.1f})",
                f"{one.took_seconds:.1f} s",
                f"{one.of_link:.2f} ×",
                _milliseconds(guest.downtime_seconds for guest in one.guests),
                _milliseconds(guest.silence_seconds for guest in one.guests),
                str(sum(guest.max_throttle_ratio > 0 for guest in one.guests)),
                str(sum(guest.mode == "postcopy" for guest in one.guests)),
            ]
        )
    header = ["guests", "plan", "took", "of bytes / link", "downtime", "silence", "throttled", "postcopy"]
    notes = sorted({f"{one.number}: {note}" for one in found for note in one.notes})
    said = "\n".join(f"- Before evacuation {note}" for note in notes)
    return paragraphs(table(header, rows), f"What the plans said of the path:\n\n{said}" if said else "")


def _milliseconds(seconds: Any) -> str:
    values = [each * 1e3 for each in seconds]
    return f"{statistics.median(values):.0f} ms (to {max(values):.0f})" if values else "—"


def _aims(found: Sequence[_Evacuation]) -> str:
    guests = [guest for one in found for guest in one.guests]
    second = [one for one in found if one.number == 2]
    silent = [guest.silence_seconds - guest.downtime_seconds for guest in guests]
    most = max(guest.downtime_seconds for guest in guests)
    rows = [
        ["each downtime", f"{_DOWNTIME_SECONDS * 1e3:.0f} ms at most", f"{most * 1e3:.0f} ms"],
        [
            "silence beside the reported downtime",
            f"{_SILENCE_SECONDS * 1e3:.0f} ms at most",
            f"{max(silent) * 1e3:.0f} ms",
        ],
        ["throttled, in postcopy or not moved", "0", str(sum(map(_disturbed, guests)))],
        [
            "whole time, of bytes / link",
            f"{_WHOLE_RATIO} × at most",
            f"{max(one.of_link for one in found):.2f} ×",
        ],
        [
            "the second plan",
            f"within {_PLAN_RATIO:.0%}",
            ", ".join(f"{one.plan_error:+.0%}" for one in second),
        ],
    ]
    return table(["what", "aim", "found"], rows)


def _disturbed(guest: _Guest) -> bool:
    return guest.max_throttle_ratio > 0 or guest.mode != "precopy" or guest.state != "completed"
