"""When the images that a guest has left are compared, removed, or kept for good."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from migrator.core.image_removal import (
    LONGEST_SECONDS,
    GuestSeen,
    ImageRemoval,
    NextRemovalStep,
    OldImage,
    RemovalState,
    from_fields,
    next_step,
    to_fields,
)

IMAGE = OldImage(device="d", named="/d.img", path="/d.img.left-m", format="raw", written="w", identity=(1, 2))
REMOVAL = ImageRemoval(
    migration="m",
    guest="g",
    host="a",
    target="b",
    socket="/s",
    process={"pid": 7},
    images=(IMAGE,),
    grace_seconds=60.0,
    arrived_at=1000.0,
)
COMPARED = replace(REMOVAL, state=RemovalState.COMPARED)
REMOVING = replace(REMOVAL, state=RemovalState.REMOVING)
THERE = GuestSeen(hosts=("b",), alive=True)


@pytest.mark.parametrize(
    ("removal", "seen", "now", "step"),
    [
        pytest.param(REMOVAL, THERE, 1001.0, NextRemovalStep.COMPARE, id="arrived"),
        pytest.param(REMOVAL, GuestSeen(hosts=("b",)), 1001.0, NextRemovalStep.WAIT, id="not seen running"),
        pytest.param(REMOVAL, GuestSeen(), 1001.0, NextRemovalStep.WAIT, id="not seen"),
        pytest.param(
            REMOVAL, replace(THERE, hosts=("c",)), 1001.0, NextRemovalStep.KEEP, id="moved on, not compared"
        ),
        pytest.param(REMOVAL, replace(THERE, goes_to="c"), 1001.0, NextRemovalStep.KEEP, id="moves on"),
        pytest.param(COMPARED, THERE, 1059.0, NextRemovalStep.WAIT, id="grace"),
        pytest.param(COMPARED, THERE, 1060.0, NextRemovalStep.REMOVE, id="due"),
        pytest.param(
            COMPARED, replace(THERE, hosts=("c",)), 1060.0, NextRemovalStep.REMOVE, id="moved on, compared"
        ),
        pytest.param(COMPARED, GuestSeen(), 1060.0, NextRemovalStep.WAIT, id="due, and not seen"),
        pytest.param(COMPARED, replace(THERE, goes_to="a"), 1060.0, NextRemovalStep.KEEP, id="comes back"),
        pytest.param(
            COMPARED, replace(THERE, hosts=("a",)), 1060.0, NextRemovalStep.KEEP, id="has come back"
        ),
        pytest.param(
            COMPARED, GuestSeen(), 1001.0 + LONGEST_SECONDS, NextRemovalStep.KEEP, id="not seen for a week"
        ),
        pytest.param(
            REMOVING,
            replace(THERE, hosts=("a",)),
            1060.0,
            NextRemovalStep.KEEP,
            id="begun, and has come back",
        ),
        pytest.param(REMOVING, THERE, 1060.0, NextRemovalStep.REMOVE, id="begun"),
        pytest.param(REMOVING, GuestSeen(), 1060.0, NextRemovalStep.WAIT, id="begun, and not seen"),
    ],
)
def test_next_step(removal: ImageRemoval, seen: GuestSeen, now: float, step: NextRemovalStep) -> None:
    assert next_step(removal, seen, now=now)[0] is step


def test_another_controller_reads_what_was_journalled() -> None:
    assert from_fields(json.loads(json.dumps(to_fields(COMPARED)))) == COMPARED
