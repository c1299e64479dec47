"""Algorithms, guests and policies by name: a guest's workload is a function, which cannot be sent to a process."""

from __future__ import annotations

from bench.policies.cases import GUESTS, ON_DEMAND, SETTINGS, Guest, Setting
from bench.policies.ours import Migrator
from bench.policies.peers import PEERS
from bench.policies.strategy import Strategy

STRATEGIES: tuple[type[Strategy], ...] = (Migrator, *PEERS)


def find(job: tuple[str, str, str, int]) -> tuple[type[Strategy], Guest, Setting, int]:
    """Return what a job names: strategy, guest, setting, and its seed."""
    strategy = next(one for one in STRATEGIES if one.name == job[0])
    guest = next(one for one in GUESTS if one.name == job[1])
    setting = next(one for one in (*SETTINGS, *ON_DEMAND) if one.name == job[2])
    return strategy, guest, setting, job[3]
