"""``python -m bench.placement``: how long plans for a large site take, and how far they are from the best possible."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence

from bench.figures import Figures, paragraphs, table, verdict
from bench.machine import Quiet, describe
from bench.options import Options as Measurement
from migrator.core.inventory import Guest, Host, HostFacts
from migrator.core.placement import Fleet, NoHost, Options, Placement, PlacementRequest, Strategy, place

GIB = 2**30
_HOSTS, _GUESTS = 10_000, 200_000
_ONE_HOST_SECONDS, _RACK_SECONDS = 1.0, 10.0
_RACK = 40
_RUNS, _INSTANCES = 5, 300


def main(arguments: list[str]) -> int:
    """Measure and print; the exit status is 1 when an aim was not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.placement", description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=_RUNS, help="how often each plan is made (default: %(default)s)"
    )
    parser.add_argument(
        "--instances",
        type=int,
        default=_INSTANCES,
        help="small instances solved exactly (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    text, met = _measure(given.runs, given.instances)
    print(f"{describe()}\n\n{text}")
    return 0 if met else 1


async def run(options: Measurement, quiet: Quiet) -> str:
    """Measure it; returns the section's text."""
    await quiet.wait()
    runs = options.runs or _RUNS
    text, _ = _measure(runs, _INSTANCES)
    return paragraphs(f"{describe()} · {runs} runs · {quiet}", text)


def _measure(runs: int, instances: int) -> tuple[str, bool]:
    speed, met = _speed(runs)
    text = paragraphs(
        f"{_HOSTS:,} hosts, {_GUESTS:,} guests. Milliseconds: median (minimum – maximum), of making the index and the "
        "plan together. `left out` is how many guests of the plan found no host.",
        speed,
        "Guests left out, beside an exact solver that goes through all ways (3 to 8 guests, 2 to 5 hosts), and in "
        "plans where every guest has a place only if each host is filled to the last byte, or nearly.",
        _gap(instances),
    )
    return text, met


# -- how long


def site(filled: float, generator: random.Random) -> tuple[list[Host], list[Guest]]:
    """A large site whose guests fill about such a part of the memory of every host."""
    hosts = [
        Host(
            name=f"host-{n}",
            facts=HostFacts(memory_total_bytes=generator.choice([256, 384, 512]) * GIB, cpus=64, kvm=True),
            memory_reserve_bytes=8 * GIB,
            labels={"zone": f"z{n % 5}", **({"ssd": "yes"} if n % 10 == 0 else {})},
        )
        for n in range(_HOSTS)
    ]
    shares = [0.25, 0.5, 1, 1, 2]
    usual = filled * _HOSTS / _GUESTS * len(shares) / sum(shares)
    guests = [
        Guest(
            key=f"vm-{n}",
            host=f"host-{n % _HOSTS}",
            memory_bytes=int(hosts[n % _HOSTS].usable_bytes * usual * generator.choice(shares)),
            vcpus=generator.choice([1, 2, 4]),
            anti_affinity=f"set-{n % 4000}" if n % 20 == 0 else "",
            group=f"group-{n % _HOSTS}" if n // _HOSTS < 2 else "",
            requires={"zone": f"z{n % 5}"} if n % 3 == 0 else {"ssd": "yes"} if n % 50 == 1 else {},
        )
        for n in range(_GUESTS)
    ]
    return hosts, guests


def _speed(runs: int) -> tuple[str, bool]:
    rows, met = [], True
    for filled, words in ((0.7, "70 % full"), (0.95, "95 % full"), (1.5, "no room")):
        hosts, guests = site(filled, random.Random(1))
        for count, limit in ((1, _ONE_HOST_SECONDS), (_RACK, _RACK_SECONDS)):
            for strategy in Strategy:
                took, left_out, asked = [], 0, 0
                for run in range(runs):
                    leaving = {f"host-{run * _RACK + n}" for n in range(count)}
                    requests = [PlacementRequest(guest=guest) for guest in guests if guest.host in leaving]
                    began = time.perf_counter()
                    fleet = Fleet(hosts=hosts, guests=guests, leaving=leaving)
                    answers = place(fleet, requests, Options(strategy=strategy))
                    took.append(time.perf_counter() - began)
                    left_out += sum(isinstance(answer, NoHost) for answer in answers.values())
                    asked += len(requests)
                figures = Figures.of(took)
                met = met and max(took) <= limit
                what = "one host" if count == 1 else f"a rack of {count}"
                rows.append(
                    [
                        words,
                        what,
                        str(strategy),
                        str(figures),
                        *verdict(figures, limit, "fixed"),
                        f"{left_out} of {asked}",
                    ]
                )
    return table(["site", "emptied", "strategy", "time", "aim", "verdict", "left out"], rows), met


# -- how good


def _gap(instances: int) -> str:
    rows = []
    generator = random.Random(2)
    worse = possible = placed = 0
    for _ in range(instances):
        hosts, guests = _small(generator)
        most, ours = exact(hosts, guests), _placed(hosts, guests)
        possible += most
        placed += ours
        worse += ours < most
    rows.append(["exact", f"{instances}", f"{possible}", f"{possible - placed}", f"{worse}"])
    for count, pieces, spare in ((10, 3, 0), (10, 3, 1), (40, 3, 0), (40, 3, 1), (40, 5, 0), (200, 5, 0)):
        worse = possible = placed = 0
        times = max(3, instances * 3 // (count * pieces))
        for _ in range(times):
            hosts, guests = _cut(count, pieces, spare, generator)
            ours = _placed(hosts, guests)
            possible += len(guests)
            placed += ours
            worse += ours < len(guests)
        what = f"{count} hosts filled by {pieces} guests each" + f", but for {spare / 64:.1%}" * bool(spare)
        rows.append([what, f"{times}", f"{possible}", f"{possible - placed}", f"{worse}"])
    return table(
        ["instances", "number", "guests that have a place", "left out by us", "instances with any"], rows
    )


def _small(generator: random.Random) -> tuple[list[Host], list[Guest]]:
    hosts = [_host(f"h{n}", generator.randint(3, 12)) for n in range(generator.randint(2, 5))]
    guests = [
        Guest(
            key=f"g{n}",
            host="gone",
            memory_bytes=generator.randint(1, 7) * GIB,
            anti_affinity=generator.choice(["", "", "db"]),
        )
        for n in range(generator.randint(3, 8))
    ]
    return hosts, guests


def _cut(count: int, pieces: int, spare: int, generator: random.Random) -> tuple[list[Host], list[Guest]]:
    """Hosts, and guests that are the pieces of them: all have a place, and there is hardly any other room."""
    hosts = [_host(f"h{n}", 64 + spare) for n in range(count)]
    sizes: list[int] = []
    for _ in hosts:
        cuts = sorted(generator.sample(range(1, 64), pieces - 1))
        sizes.extend(end - start for start, end in zip([0, *cuts], [*cuts, 64], strict=True))
    return hosts, [Guest(key=f"g{n}", host="gone", memory_bytes=size * GIB) for n, size in enumerate(sizes)]


def _host(name: str, memory: int) -> Host:
    return Host(name=name, facts=HostFacts(memory_total_bytes=memory * GIB))


def _placed(hosts: Sequence[Host], guests: Sequence[Guest]) -> int:
    answers = place(
        Fleet(hosts=hosts, guests=guests),
        [PlacementRequest(guest=guest, kvm=False) for guest in guests],
        Options(strategy=Strategy.PACK),
    )
    return sum(isinstance(answer, Placement) for answer in answers.values())


def exact(hosts: Sequence[Host], guests: Sequence[Guest]) -> int:
    """How many of the guests can have a place at once, by memory and anti-affinity."""
    left = {host.name: host.usable_bytes for host in hosts}
    words: dict[str, set[str]] = {host.name: set() for host in hosts}
    best = 0

    def go(at: int, placed: int, left: Mapping[str, int]) -> None:
        nonlocal best
        best = max(best, placed)
        if placed + len(guests) - at <= best:
            return
        guest = guests[at]
        for name, room in left.items():
            word = guest.anti_affinity
            if room < guest.memory_bytes or word in words[name]:
                continue
            if word:
                words[name].add(word)
            go(at + 1, placed + 1, {**left, name: room - guest.memory_bytes})
            words[name].discard(word)
        go(at + 1, placed, left)

    go(0, 0, left)
    return best


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
