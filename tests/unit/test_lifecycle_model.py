"""The decision table drives a model of two QEMUs through everything that may happen to them, one state after another.

What is explored: every order of what the ends and the controller do, with a misfortune at any moment, a Ctrl-C at any
moment, and a controller that dies at any moment, whose record another takes up. In every state the guest runs at most
once, and nothing is ended that only it holds; and from every state a controller that is left alone comes to an end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from migrator.core.migration import lifecycle
from migrator.core.migration.lifecycle import ROWS, Row, Step
from migrator.core.migration.situation import DestinationIs, SourceIs
from migrator.core.model import State
from tests import lifecycle_model as model
from tests.lifecycle_model import Broken, Endings, Fault, Setting, explore, way

S, D = SourceIs, DestinationIs
HELD = {row.name for row in ROWS if row.answer.state is State.HELD}

GAVE_UP = {
    "postcopy-no-way-back",
    "postcopy-broken-source",
    "postcopy-broken-alone",
    "settled-here-handed-there",
}
#: What a person must look at after which fault, in precopy, where the destination can be fenced. Anything else ends by
#: itself, whatever the controller was doing, dying included.
PRECOPY: Mapping[str, set[str]] = {
    Fault.DESTINATION_DIES: {"destination-died-after-hand-over"},
    Fault.DESTINATION_STALLS: {"silent-after-hand-over", "source-gone-destination-silent"},
    Fault.SOURCE_DIES: {"source-died", "source-gone-unwatched"},
    Fault.SOURCE_STALLS: {"source-does-not-answer"},
    # It waits for a destination whose end it cannot hear of, and greets no controller that takes over.
    Fault.BLACK_HOLE: {"source-does-not-answer"},
    # Of which a controller that took over has heard nothing.
    Fault.GUEST_ENDS: {"source-died", "destination-died-after-hand-over"},
}
#: What more it may be in postcopy: past the switch there is no going back.
POSTCOPY: Mapping[str, set[str]] = {
    Fault.DESTINATION_DIES: {"postcopy-no-way-back", "settled-here-destination-died"},
    Fault.DESTINATION_STALLS: {"postcopy-stalled", "source-does-not-answer", "at-switch-cannot-fence"}
    | {"postcopy-broken"},
    # It woke just when its stream was paused.
    Fault.DESTINATION_DOZES: GAVE_UP,
    Fault.SOURCE_DIES: {"postcopy-source-died"},
    # Before it had sent all of the guest.
    Fault.SOURCE_STALLS: {"silent-after-hand-over", "postcopy-broken"},
    # Of these four: an end gave the stream up before the destination had what it needs, or (10.0) after the source had
    # sent all of it and before that had come through.
    Fault.BLACK_HOLE: {"postcopy-stalled", "postcopy-broken"} | GAVE_UP,
    # Or (7.2) in the midst of a recovery.
    Fault.RESET: {"destination-died-after-hand-over"} | GAVE_UP,
    Fault.REJECTED: {"postcopy-no-way-back"},
    Fault.GUEST_ENDS: {"settled-here-destination-died"},
}


@pytest.fixture(autouse=True)
def fresh_answers() -> Iterator[None]:
    model.forget_answers()
    yield
    model.forget_answers()


def held(setting: Setting, **what_may_happen: object) -> dict[str, set[str]]:
    """Explore it all; after which fault a person may have to look, and at what.

    :raise Broken: with the way to the first state that should not be.
    """
    reached = explore(setting, **what_may_happen)
    endings = Endings(setting)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for world in reached:
        if world.idle:
            try:
                rows = endings.of(world)
            except Broken as error:
                raise Broken(f"{error}: {' → '.join(way(reached, world))}") from None
            found["+".join(sorted(world.happened))] |= rows & HELD
    return {fault: rows for fault, rows in found.items() if rows}


def unexpected(setting: Setting, looked_at: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Where a person is called without need."""
    # A controller fenced the source and died: the next cannot know that the guest had not run on.
    rare = {"source-gone-unwatched"}
    more = {
        fault: rows
        - rare
        - PRECOPY.get(fault, set())
        - (POSTCOPY.get(fault, set()) if setting.postcopy else set())
        - (BEHIND.get(fault, set()) if setting.behind else set())
        for fault, rows in looked_at.items()
    }
    return {fault: rows for fault, rows in more.items() if rows}


#: What more it may be where the record may lack its last entries: the source had completed, so that it may have been
#: handed over, or in postcopy had switched.
BEHIND: Mapping[str, set[str]] = {
    Fault.DESTINATION_DIES: {"settled-here-destination-died"},
    Fault.RESET: {"settled-here-destination-died"},
}


def any_fault(setting: Setting) -> frozenset[Fault]:
    return frozenset(Fault) if setting.guest_runs else frozenset(Fault) - {Fault.GUEST_ENDS}


def named(setting: Setting) -> str:
    words = ["postcopy" if setting.postcopy else "precopy", "running" if setting.guest_runs else "paused"]
    words += ["7.2" if setting.old else "10.0", "" if setting.can_fence else "no-fence"]
    return "-".join(word for word in [*words, "fence-fails" if setting.fence_fails else ""] if word)


ALL = [
    Setting(postcopy=postcopy, old=old, guest_runs=runs, can_fence=fences, fence_fails=fails)
    for postcopy in (False, True)
    for old in (False, True)
    for runs in (True, False)
    for fences, fails in [(True, False), (True, True), (False, False)]
]
#: Each value with each other one at least once, but for the dearest.
SOME = [
    Setting(),
    Setting(postcopy=True),
    Setting(postcopy=True, old=True, guest_runs=False, can_fence=False),
    Setting(guest_runs=False, old=True, fence_fails=True),
]


@pytest.mark.parametrize(
    "setting",
    [pytest.param(each, marks=() if each in SOME else pytest.mark.matrix) for each in ALL],
    ids=named,
)
def test_nothing_is_doubled_or_lost_and_every_way_has_an_end(setting: Setting) -> None:
    looked_at = held(setting, faults=any_fault(setting), crashes=1, cancels=1)
    assert setting.fence_fails or not setting.can_fence or unexpected(setting, looked_at) == {}


@pytest.mark.parametrize("setting", [Setting(hasty=False, old=old) for old in (False, True)], ids=named)
def test_source_that_waits_for_a_dead_destination_goes_on_by_itself_while_its_controller_lives(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    what_may_happen = {"faults": frozenset({Fault.BLACK_HOLE}), "cancels": 1}
    assert held(setting, **what_may_happen) == {}
    monkeypatch.setattr(lifecycle, "ROWS", [row for row in ROWS if row.name != "cancel-source-silent"])
    model.forget_answers()
    assert held(setting, **what_may_happen) == {Fault.BLACK_HOLE: {"source-does-not-answer"}}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "setting",
    [
        Setting(),
        Setting(postcopy=True, hasty=False),
        pytest.param(Setting(postcopy=True), marks=pytest.mark.matrix),
        pytest.param(Setting(old=True, guest_runs=False), marks=pytest.mark.matrix),
        pytest.param(Setting(postcopy=True, old=True), marks=pytest.mark.matrix),
        pytest.param(Setting(fence_fails=True), marks=pytest.mark.matrix),
        pytest.param(Setting(postcopy=True, can_fence=False), marks=pytest.mark.matrix),
    ],
    ids=named,
)
def test_no_word_of_a_person_doubles_a_guest_or_loses_it(setting: Setting) -> None:
    """Whatever holds it, whatever the person then says truly, and whatever happens before it is done."""
    reached = explore(setting, faults=any_fault(setting), words=2)
    said = {each.end.row for each in reached if each.end is not None and each.intent.said is not None}
    assert said & {"said-lost", "arrived-source-gone", "undone", "undone-cancelled"}


@pytest.mark.matrix
@pytest.mark.timeout(300)
@pytest.mark.parametrize("postcopy", [False, True], ids=["precopy", "postcopy"])
def test_two_misfortunes_are_survived_as_one(postcopy: bool) -> None:
    # Not among them: a connection that breaks just when all of the guest is over, so that only the source fails, and a
    # second blow to the source before anybody looked. Only its RESUME, a microsecond earlier, would have told.
    faults = frozenset(Fault) - {Fault.RESET}
    setting = Setting(postcopy=postcopy, hasty=False)
    assert held(setting, faults=faults, misfortunes=2, crashes=1, cancels=1)


GUARDED = [
    Setting(),
    Setting(old=True),
    Setting(offline=True),
    Setting(postcopy=True),
    Setting(postcopy=True, old=True),
]


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(each, marks=() if each in (GUARDED[0], GUARDED[4]) else pytest.mark.matrix)
        for each in GUARDED
    ],
    ids=lambda each: named(each) + "-offline" * each.offline,
)
def test_a_guard_may_act_at_any_moment_whatever_its_controller_does(setting: Setting) -> None:
    """Also where it is wrong about a controller, and while that sends migrate-continue."""
    faults = frozenset({Fault.DESTINATION_DIES, Fault.DESTINATION_DOZES, Fault.RESET})
    looked_at = held(setting, faults=faults, crashes=1, cancels=0, guards=2)
    assert unexpected(setting, looked_at) == {}


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(
            replace(each, behind=True, unhurried=True), marks=() if each.offline else pytest.mark.matrix
        )
        for each in GUARDED
    ],
    ids=lambda each: named(each) + "-offline" * each.offline,
)
def test_what_a_guard_has_ended_was_not_handed_over_whatever_the_record_lacks(setting: Setting) -> None:
    faults = frozenset({Fault.DESTINATION_DIES, Fault.DESTINATION_DOZES, Fault.RESET})
    looked_at = held(setting, faults=faults, crashes=1, cancels=0, guards=2)
    assert unexpected(setting, looked_at) == {}


@pytest.mark.parametrize(
    ("flaw", "setting", "fault"),
    [
        # Over a monitor of its own: a cancel that comes late is carried out after the destination has all of the guest.
        ("", Setting(exclusive=False), Fault.DESTINATION_DOZES),
        (model.CANCELS_ALWAYS, Setting(), Fault.DESTINATION_DOZES),
        # A migrate-continue that was carried out need not show yet.
        (model.IGNORES_MARK, Setting(), Fault.DESTINATION_DOZES),
        (model.IGNORES_MARK, Setting(offline=True), Fault.BLACK_HOLE),
        (model.IS_NOT_RELEASED, Setting(postcopy=True, old=True, exclusive=False), Fault.BLACK_HOLE),
        (model.RESUMES_ALWAYS, Setting(), Fault.BLACK_HOLE),
    ],
    ids=[
        "another monitor",
        model.CANCELS_ALWAYS,
        model.IGNORES_MARK,
        f"{model.IGNORES_MARK} offline",
        model.IS_NOT_RELEASED,
        model.RESUMES_ALWAYS,
    ],
)
def test_a_guard_that_does_otherwise_does_not_get_through(flaw: str, setting: Setting, fault: Fault) -> None:
    with pytest.raises(Broken):
        held(replace(setting, guard_flaw=flaw), faults=frozenset({fault}), crashes=1, guards=2)


def but(row: Row, change: dict[str, Any]) -> Row:
    """The same row with another step, or with other fields of its own."""
    if "step" in change:
        return replace(row, answer=replace(row.answer, step=change["step"]))
    return replace(row, **change)


class TestTheModelBites:
    """A table with one rule changed does not get through, nor does a controller that omits one thing."""

    @pytest.mark.parametrize(
        ("name", "change", "setting", "faults"),
        [
            ("hand-over", {"source": {S.DONE, S.SWITCHING}}, Setting(), {Fault.RESET}),
            (
                "hand-over-source-gone",
                {"when": lambda now: True},
                Setting(hasty=False),
                {Fault.RESET, Fault.SOURCE_DIES},
            ),
            ("wait-after-hand-over", {"step": Step.FENCE_DESTINATION}, Setting(), {Fault.DESTINATION_DOZES}),
            (
                "switching",
                {"step": Step.FENCE_DESTINATION},
                Setting(postcopy=True),
                {Fault.DESTINATION_DOZES},
            ),
            ("switching", {"step": Step.CANCEL}, Setting(postcopy=True, old=True), {Fault.BLACK_HOLE}),
            ("cancel-destination-dead", {"step": Step.WAIT}, Setting(), {Fault.DESTINATION_DIES}),
            ("left-stopped", {"step": Step.REVIVE}, Setting(old=True, guest_runs=False), {Fault.REJECTED}),
            ("revive", {"when": lambda now: False}, Setting(old=True, guest_runs=False), {Fault.REJECTED}),
            ("switching", {"step": Step.RESUME}, Setting(postcopy=True), {Fault.BLACK_HOLE}),
            ("source-gone-still-loading", {"step": Step.DISMISS}, Setting(), {Fault.SOURCE_DIES}),
            ("arrived", {}, Setting(postcopy=True, stops_first=False), {Fault.RESET}),
            ("dismiss", {"when": lambda now: False}, Setting(), {Fault.REJECTED}),
            ("fetching", {"step": Step.RETIRE}, Setting(postcopy=True), {Fault.BLACK_HOLE}),
            ("copying-stalled", {"step": Step.WAIT}, Setting(), {Fault.BLACK_HOLE}),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test(
        self,
        name: str,
        change: dict[str, Any],
        setting: Setting,
        faults: set[Fault],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        changed = tuple(but(row, change) if row.name == name else row for row in ROWS)
        assert changed != ROWS or not setting.stops_first
        monkeypatch.setattr(lifecycle, "ROWS", changed)
        try:
            looked_at = held(setting, faults=frozenset(faults), misfortunes=len(faults), crashes=1, cancels=1)
        except Broken:
            return
        assert unexpected(setting, looked_at)
