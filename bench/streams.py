"""Channels, compression and secrecy of the stream, each beside the plain stream, in turns."""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import bare
from bench.figures import Figures, paragraphs, table
from bench.libvirt import Unavailable
from bench.machine import Quiet, describe
from bench.options import SETTLE_SECONDS, Options
from bench.ours import Failed, Migrator
from migrator.core.migration.stream_layout import (
    DELTAS_WRITTEN_RATIO,
    NARROW_BYTES_PER_SECOND,
    WORTH_COMPRESSING_SECONDS,
)
from migrator.pki.authority import Authority
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Habit, Lab, Pair
from migrator.testing.network import LabHosts
from tests.sshd import Sshd

_MIB = 1 << 20
_MBIT = 1e6 / 8
_FILLED_BYTES = 48 * _MIB
_FAST_BYTES = 512 * _MIB
#: Where the memory that a guest is given at its start begins; the guest itself stays below.
_AT = 64 * _MIB
_ZSTD = "zstd"
#: Up to here it is chosen by itself, for at least so much memory over a link of that speed.
_NARROW_MBIT, _CHOSEN_MBIT = int(NARROW_BYTES_PER_SECOND / _MBIT), 60
_CHOSEN_BYTES = math.ceil(WORTH_COMPRESSING_SECONDS * _CHOSEN_MBIT * _MBIT / _MIB) * _MIB
_XBZRLE, _SSH = "xbzrle", "through SSH"
_OPTIONS: dict[str, tuple[str, ...]] = {
    "plain": ("--compress", "never"),
    _ZSTD: ("--compress", "zstd"),
    _XBZRLE: ("--compress", "xbzrle"),
    "2 channels": ("--compress", "never", "--streams", "2"),
    "4 channels": ("--compress", "never", "--streams", "4"),
    "encrypted": ("--compress", "never"),
    "encrypted, 2 channels": ("--compress", "never", "--streams", "2"),
    "encrypted, 4 channels": ("--compress", "never", "--streams", "4"),
    _SSH: ("--compress", "never", "--stream", "ssh"),
}
#: Guests that write faster than their share of the link lets whole pages end with: link in Mbit/s, memory that is
#: written and how much of it a second in MiB.
_HOT = ((60, 16, 6), (60, 16, 16), (1000, 64, 100))
#: A guest is throttled as much as it takes where whole pages would never do.
_THROTTLED = ("--max-throttle", "90%", "--max-duration", "90s")
#: A choice that is made by itself costs at most so much more than the plain stream.
_AIM = 1.03


@dataclass(frozen=True, kw_only=True)
class _Took:
    duration_seconds: float
    downtime_seconds: float


async def run(options: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text.

    :raise Unavailable: where there can be no hosts with links of a set speed.
    """
    if reason := network.possible():
        raise Unavailable(reason)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        with (
            LabHosts("alpha", "beta", isolated=True) as hosts,
            Sshd(directory / "sshd", address=hosts["beta"].address, prefix=hosts["beta"].prefix) as server,
        ):
            migrator = Migrator(directory / "migrator", prefix=_knowing(server, directory))
            bench = _Bench(migrator, directory, options, quiet)
            fast = await bench.fast(hosts)
            zero_copy = await bench.zero_copy(hosts)
            hot = await bench.hot(hosts)
            narrow = await bench.narrow(hosts)
    return paragraphs(
        f"{describe(str(options.binary))} · {options.runs or 2} runs of each, in turns · {quiet}",
        "Two namespaces with a link between them; the guest (TCG) is idle. Seconds: median (minimum – maximum), and "
        "the ratio of the medians to that of the plain stream. The controller, both QEMUs and the link share two CPUs.",
        *fast,
        *zero_copy,
        *hot,
        *narrow,
    )


def _knowing(server: Sshd, directory: Path) -> tuple[str, ...]:
    """Return the command in which SSH clients have the key of a server's user, and know the server's own."""
    config = directory / "ssh_config"
    config.write_text(f"Host *\nIdentityFile {server.key}\nUserKnownHostsFile {server.known_hosts}\n")
    script = 'mount --bind "$0" /etc/ssh/ssh_config && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, str(config))


class _Bench:
    def __init__(self, migrator: Migrator, directory: Path, options: Options, quiet: Quiet) -> None:
        self._migrator, self._directory = migrator, directory
        self._options, self._quiet = options, quiet
        self._pki = directory / "pki"
        authority = Authority.make(directory / "authority", site="bench")
        issued = authority.issue("bench", ["bench"])
        self._pki.mkdir()
        (self._pki / "ca-cert.pem").write_bytes(authority.pem)
        for end in ("server", "client"):
            (self._pki / f"{end}-cert.pem").write_bytes(issued.certificate)
            (self._pki / f"{end}-key.pem").write_bytes(issued.key)

    async def fast(self, hosts: LabHosts) -> list[str]:
        """Cost of secrecy and gain of channels where only the CPUs limit the stream."""
        channels = ("2 channels", "4 channels", "encrypted, 2 channels", "encrypted, 4 channels")
        variants = ("plain", _ZSTD, "encrypted", _SSH, *channels)
        took = await self._compare(hosts, variants, self._memory("random", _FAST_BYTES), _FAST_BYTES)
        rows = _rows("", took)
        return [
            f"**No limit but the CPUs**, {_FAST_BYTES // _MIB} MiB of random bytes in the guest's memory:",
            table(["stream", "time", "of plain", "downtime (ms)"], rows),
        ]

    async def zero_copy(self, hosts: LabHosts) -> list[str]:
        """Gain of sending pages without copying them, which no migration uses, by a script that does nothing else."""
        took: dict[str, list[_Took]] = defaultdict(list)
        memory = self._memory("random", _FAST_BYTES)
        for _ in range(self._options.runs or 2):
            for variant in ("2 channels", "2 channels, zero-copy"):
                print(f"streams: {variant}, by a script", flush=True)
                await self._quiet.wait()
                async with self._pair(hosts, memory, _FAST_BYTES) as pair:
                    moved = await bare.move(
                        pair,
                        max_downtime_seconds=0.3,
                        listen=f"tcp:{hosts['beta'].address}:0",
                        channels=2,
                        zero_copy=variant != "2 channels",
                    )
                one = _Took(duration_seconds=moved.duration_seconds, downtime_seconds=moved.downtime_seconds)
                took[variant].append(one)
        return [
            "**Zero-copy**, the same guest, moved by a script with nothing around it; no migration uses it:",
            table(["stream", "time", "of copying", "downtime (ms)"], _rows("", took, beside="2 channels")),
        ]

    async def hot(self, hosts: LabHosts) -> list[str]:
        """Gain of sending changes alone of a guest that writes to the same pages again and again."""
        rows, worst = [], 0.0
        for mbit, memory, rate in _HOT:
            for host in hosts:
                host.set_speed(mbit * _MBIT)
            habit = Habit(region_bytes=memory * _MIB, bytes_per_second=rate * _MIB)
            took: dict[str, list[_Took]] = defaultdict(list)
            for _ in range(self._options.runs or 2):
                for variant in ("plain", _XBZRLE):
                    print(f"streams: {rate} MiB/s over {mbit} Mbit/s, {variant}", flush=True)
                    await self._quiet.wait()
                    took[variant].append(await self._move_hot(hosts, variant, habit))
            rows += _rows(f"{mbit} Mbit/s, {rate} MiB/s in {memory} MiB, ", took)
            if rate * _MIB >= DELTAS_WRITTEN_RATIO * mbit * _MBIT:
                worst = max(worst, _median(took[_XBZRLE]) / _median(took["plain"]))
        for host in hosts:
            host.set_speed(None)
        title = (
            "**Guests that write to the same pages again and again**, one byte in each; throttled as needed"
        )
        return [
            f"{title} (inf: not within 90 s):",
            table(["stream", "time", "of plain", "downtime (ms)"], rows),
            table(
                ["what", "ratio", "aim"],
                [["xbzrle where it is chosen by itself, the worst", f"{worst:.2f}", f"≤ {_AIM}"]],
            ),
        ]

    async def _move_hot(self, hosts: LabHosts, variant: str, habit: Habit) -> _Took:
        machine = GuestMachine(habit=habit)
        async with self._started(hosts, machine) as pair:
            try:
                outcome = await self._migrator.direct(
                    pair.source.qmp,
                    pair.destination.qmp,
                    *("--postcopy", "never", "--tls", "off", *_THROTTLED),
                    *("--listen", f"tcp:{hosts['beta'].address}:0"),
                    *_OPTIONS[variant],
                    mode="precopy",
                )
            except Failed:
                return _Took(duration_seconds=math.inf, downtime_seconds=math.inf)
        return _Took(duration_seconds=outcome.duration_seconds, downtime_seconds=outcome.downtime_seconds)

    async def narrow(self, hosts: LabHosts) -> list[str]:
        """Gain of compression over narrow links."""
        rows = []
        for mbit in (_CHOSEN_MBIT, 300, 1000):
            for host in hosts:
                host.set_speed(mbit * _MBIT)
            for memory in ("program text", "random bytes"):
                path = self._memory(memory, _FILLED_BYTES)
                through_ssh = (_SSH,) if memory == "random bytes" else ()
                took = await self._compare(hosts, ("plain", _ZSTD, *through_ssh), path, _FILLED_BYTES)
                rows += _rows(f"{mbit} Mbit/s, {memory}, ", took)
        for host in hosts:
            host.set_speed(_CHOSEN_MBIT * _MBIT)
        # The least memory for which it is chosen by itself, and none of it compresses: the worst that may be chosen.
        path = self._memory("random bytes", _CHOSEN_BYTES)
        took = await self._compare(hosts, ("plain", _ZSTD), path, _CHOSEN_BYTES)
        rows += _rows(f"{_CHOSEN_MBIT} Mbit/s, {_CHOSEN_BYTES // _MIB} MiB of random bytes, ", took)
        worst = _median(took[_ZSTD]) / _median(took["plain"])
        title = f"**Narrow links**, {_FILLED_BYTES // _MIB} MiB of memory that is filled"
        return [
            f"{title}; the last are the least memory for which zstd is chosen by itself:",
            table(["stream", "time", "of plain", "downtime (ms)"], rows),
            table(
                ["what", "ratio", "aim"],
                [
                    [
                        f"zstd where it is chosen by itself (up to {_NARROW_MBIT} Mbit/s), the worst",
                        f"{worst:.2f}",
                        f"≤ {_AIM}",
                    ]
                ],
            ),
        ]

    async def _compare(
        self, hosts: LabHosts, variants: Sequence[str], memory: Path, size: int
    ) -> dict[str, list[_Took]]:
        took: dict[str, list[_Took]] = defaultdict(list)
        for _ in range(self._options.runs or 2):
            for variant in variants:
                print(f"streams: {memory.name}, {variant}", flush=True)
                await self._quiet.wait()
                took[variant].append(await self._move(hosts, variant, memory, size))
        return took

    async def _move(self, hosts: LabHosts, variant: str, memory: Path, size: int) -> _Took:
        async with self._pair(hosts, memory, size) as pair:
            tls: tuple[str, ...] = () if variant == _SSH else ("--tls", "off")
            if variant.startswith("encrypted"):
                tls = ("--tls", "require", "--tls-dir", str(self._pki), "--tls-name", "bench")
            outcome = await self._migrator.direct(
                pair.source.qmp,
                pair.destination.qmp,
                *("--postcopy", "never", "--max-throttle", "0"),
                *("--listen", f"tcp:{hosts['beta'].address}:0"),
                *_OPTIONS[variant],
                *tls,
                mode="precopy",
            )
        return _Took(duration_seconds=outcome.duration_seconds, downtime_seconds=outcome.downtime_seconds)

    @asynccontextmanager
    async def _pair(self, hosts: LabHosts, memory: Path, size: int) -> AsyncIterator[Pair]:
        loader = ("-device", f"loader,file={memory},addr={_AT:#x},force-raw=on")
        machine = GuestMachine(habit=Habit(), memory_bytes=size + 2 * _AT, extra=loader)
        async with self._started(hosts, machine) as pair:
            yield pair
            await pair.destination.wait_beating()

    @asynccontextmanager
    async def _started(self, hosts: LabHosts, machine: GuestMachine) -> AsyncIterator[Pair]:
        async with Lab() as lab:
            source = await lab.boot(machine, binary=self._options.binary, prefix=hosts["alpha"].prefix)
            destination = await lab.start(
                machine, binary=self._options.binary, incoming=True, prefix=hosts["beta"].prefix
            )
            await asyncio.sleep(SETTLE_SECONDS)
            yield Pair(source, destination)

    def _memory(self, kind: str, size: int) -> Path:
        """Return a file of so many bytes: random, or of programs as they are in this machine's memory too."""
        path = self._directory / f"{kind.replace(' ', '-')}-{size}"
        if not path.exists():
            if kind == "program text":
                content = self._options.binary.resolve().read_bytes()
                if len(content) < _MIB:  # a script that starts it
                    content = b"".join(
                        each.read_bytes() for each in sorted(Path("/usr/lib").glob("*/lib*.so.*.*"))[:200]
                    )
                path.write_bytes((content * (size // max(1, len(content)) + 1))[:size])
            else:
                generator = random.Random(7)
                path.write_bytes(b"".join(generator.randbytes(_MIB) for _ in range(size // _MIB)))
        return path


def _rows(prefix: str, took: dict[str, list[_Took]], *, beside: str = "plain") -> list[list[str]]:
    plain = _median(took[beside])
    return [
        [
            f"{prefix}{variant}",
            _seconds(runs),
            f"{_median(runs) / plain:.2f}",
            str(Figures.of(one.downtime_seconds for one in runs)),
        ]
        for variant, runs in took.items()
    ]


def _seconds(runs: list[_Took]) -> str:
    each = sorted(one.duration_seconds for one in runs)
    return f"{_median(runs):.2f} ({each[0]:.2f} – {each[-1]:.2f})"


def _median(runs: list[_Took]) -> float:
    each = sorted(one.duration_seconds for one in runs)
    if not each:
        raise Failed("nothing was measured")
    middle = len(each) // 2
    return each[middle] if len(each) % 2 else (each[middle - 1] + each[middle]) / 2
