"""The peers' algorithms keep to the constants they publish; the harness gives the same outcome for the same case."""

from __future__ import annotations

import pytest

from bench.policies import simulated
from bench.policies.cases import GUESTS, MEMORY_BYTES, SETTINGS
from bench.policies.ours import Migrator
from bench.policies.outcome import Outcome
from bench.policies.peers import (
    PEERS,
    KubeVirt,
    KubeVirtNew,
    Nova,
    Proxmox,
    VdsmMinimalDowntime,
    VdsmPostcopy,
)
from bench.policies.strategy import Action, Do, Strategy
from migrator.core.model import Sample
from migrator.core.policy import Policy, PostcopyMode

CEILING = Policy(name="test", max_downtime_seconds=0.5)
WITH_POSTCOPY = Policy(name="test", max_downtime_seconds=0.5, postcopy=PostcopyMode.ALLOW)
GIB = 1 << 30


def course(strategy: Strategy, *left_mib: float, every: float | None = None) -> list[tuple[float, Action]]:
    """What it does, and when, as these amounts are left; each look is at a new round."""
    step = every or strategy.interval_seconds
    done = []
    for number, left in enumerate(left_mib, start=1):
        sample = Sample(
            at_seconds=number * step,
            round=number,
            remaining_bytes=int(left * 2**20),
            bandwidth_bytes_per_second=100 * 2**20,
        )
        done += [(sample.at_seconds, action) for action in strategy.on_sample(sample)]
    return done


def test_vdsm_takes_a_step_each_time_more_is_left_than_before_and_then_gives_up() -> None:
    steering = VdsmMinimalDowntime(CEILING, GIB)
    assert steering.setup().downtime_limit_seconds == 0.1
    done = course(steering, *range(100, 120))[:7]
    assert [action.value for _, action in done[:5]] == [0.15, 0.2, 0.3, 0.4, 0.5]
    assert done[6] == (80.0, Action(Do.ABORT))


def test_vdsm_leaves_a_guest_alone_of_which_ever_less_is_left() -> None:
    assert course(VdsmMinimalDowntime(CEILING, GIB), *range(120, 100, -1)) == []


def test_vdsm_goes_to_postcopy_after_two_steps() -> None:
    done = course(VdsmPostcopy(WITH_POSTCOPY, GIB), *range(100, 110))
    assert [action.do for _, action in done[:3]] == [Do.DOWNTIME_LIMIT, Do.DOWNTIME_LIMIT, Do.POSTCOPY]


def test_nova_climbs_in_ten_steps_by_the_size_of_the_guest() -> None:
    steering = Nova(CEILING, 2 * GIB)
    assert steering.setup().downtime_limit_seconds == pytest.approx(0.05)
    done = course(steering, *[500] * 3300)
    limits = [(at, round(action.value, 3)) for at, action in done if action.do is Do.DOWNTIME_LIMIT]
    assert limits[0] == (150.0, 0.095)
    assert limits[-1] == (1500.0, 0.5)
    assert done[len(limits)] == (1600.0, Action(Do.ABORT))


def test_kubevirt_waits_for_its_time_out() -> None:
    assert course(KubeVirt(CEILING, GIB), *[500] * 150) == [(150.0, Action(Do.ABORT))]
    assert course(KubeVirt(WITH_POSTCOPY, GIB), *[500] * 150) == [(150.0, Action(Do.POSTCOPY))]


def test_newer_kubevirt_acts_near_the_best_once_40_seconds_brought_nothing() -> None:
    left = [60, 40] + [80, 41] * 30
    done = course(KubeVirtNew(CEILING, GIB), *left, every=1.0)
    assert done[0] == (42.0, Action(Do.PAUSE))


def test_newer_kubevirt_does_not_act_beyond_its_budget() -> None:
    assert course(KubeVirtNew(CEILING, GIB), *[60] * 100, every=1.0) == []


def test_proxmox_doubles_without_end() -> None:
    done = course(Proxmox(CEILING, GIB), *range(1000))
    values = [action.value for _, action in done]
    assert values[:4] == [0.2, 0.4, 0.8, 1.6]
    assert values[-1] == 2000


def test_every_policy_has_the_same_peers_once() -> None:
    for setting in SETTINGS:
        names = [peer.name for peer in PEERS if peer.fits(setting.policy)]
        assert len(names) == 6, setting.name


@pytest.mark.parametrize("strategy", [Migrator, *PEERS], ids=lambda strategy: strategy.name)
def test_idle_guest_is_moved_inside_every_policy_by_everyone(strategy: type[Strategy]) -> None:
    for setting in SETTINGS:
        if strategy.fits(setting.policy):
            assert simulated.run(strategy, GUESTS[0], setting, 0).inside(setting.policy)


def test_same_case_has_the_same_outcome() -> None:
    guest = next(guest for guest in GUESTS if guest.name == "just under the link")
    assert simulated.run(Migrator, guest, SETTINGS[0], 1) == simulated.run(Migrator, guest, SETTINGS[0], 1)


@pytest.mark.parametrize(
    "but",
    [
        {"end": "aborted"},
        {"downtime_seconds": 0.31},
        {"downtime_seconds": None},
        {"max_throttle_ratio": 0.9},
        {"postcopy": True},
        {"seconds": 31.0},
    ],
    ids=str,
)
def test_what_is_outside_a_policy(but: dict[str, object]) -> None:
    setting = SETTINGS[-1]
    good: dict[str, object] = {
        "strategy": "",
        "guest": "",
        "setting": setting.name,
        "seed": 0,
        "end": "completed",
        "seconds": 29.0,
        "downtime_seconds": 0.29,
        "lost_seconds": 1.0,
        "sent_bytes": 1.0,
        "max_throttle_ratio": 0.8,
    }
    assert Outcome(**good).inside(setting.policy)  # type: ignore[arg-type]
    assert not Outcome(**(good | but)).inside(setting.policy)  # type: ignore[arg-type]


def test_guests_fit_into_their_memory() -> None:
    for guest in GUESTS:
        assert guest.simulated().working_bytes < MEMORY_BYTES
        assert guest.real is None or guest.real.needed_bytes < MEMORY_BYTES
