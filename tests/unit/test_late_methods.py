"""Dataclasses whose methods are compiled when they are first called do what others do."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
from copy import copy
from dataclasses import FrozenInstanceError, asdict, dataclass, field, replace
import dataclasses, sys
LATE = "late" in sys.argv
if LATE:
    from migrator.cli.late_methods import compile_late
    compile_late()
compiled = []
if hasattr(dataclasses, "_create_fn"):
    import builtins
    plain = builtins.exec
    dataclasses.exec = lambda text, *rest: (compiled.append(text), plain(text, *rest))

@dataclass(frozen=True, kw_only=True)
class Base:
    name: str
    tags: tuple = ()

@dataclass(frozen=True, kw_only=True)
class Guest(Base):
    disks: list = field(default_factory=list, compare=False)
    def __post_init__(self):
        self.disks.append(self.name)

@dataclass
class Count:
    number: int
    step: int = 2
    def __repr__(self):
        return "mine"

@dataclass(order=True)
class Place:
    x: int
    y: int = 0

defined = len(compiled)
one, other = Guest(name="a"), Guest(name="a", tags=("t",))
print(one, other, one == Guest(name="a", disks=[1]), one == other, one == Base(name="a"), hash(one) == hash(copy(one)))
print(asdict(replace(other, name="b")), Guest(name="c").disks, one.disks, Guest.__init__.__qualname__)
for attempt in (lambda: setattr(one, "name", "z"), lambda: delattr(one, "tags"), lambda: Guest(), lambda: Guest("a"),
                lambda: Count(), lambda: hash(Count(1)), lambda: Place(1) < 2):
    try:
        attempt()
    except (FrozenInstanceError, TypeError) as error:
        print(type(error).__name__, error)
count = Count(1)
count.number += count.step
print(count, count.number, Count(3) == count, Count(4) == count)
print(sorted([Place(2), Place(1, 5), Place(1)]), Place(1) < Place(2))
assert bool(defined) != LATE or not hasattr(dataclasses, "_create_fn"), compiled[:defined]
"""


def _said(*arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_they_behave_as_others_and_none_is_compiled_before_it_is_called() -> None:
    assert _said("late") == _said()
