"""What becomes of command lines as others make them: started again as exactly this, or refused for exactly that."""

from __future__ import annotations

import pytest

from migrator.core.findings import CATALOGUE
from tests.shapes import OURS, SHAPES, Shape, judge

assert len(SHAPES) >= 80
MOVABLE = [shape for shape in SHAPES if shape.becomes]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_shape(shape: Shape) -> None:
    outcome = judge(shape)
    assert outcome.codes("error") == shape.listed("refused for")
    assert outcome.codes("warning") == shape.listed("warned of")
    assert outcome.files == shape.files
    can_be_moved = all(CATALOGUE[code].overridable for code in outcome.codes("error"))
    assert can_be_moved == bool(shape.becomes)
    if can_be_moved:
        assert list(outcome.replica.argv) == list(shape.becomes)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_finding_can_be_read_by_a_person(shape: Shape) -> None:
    for finding in judge(shape).findings:
        assert finding.message.isprintable()
        assert finding.remedy


@pytest.mark.parametrize("shape", MOVABLE, ids=lambda shape: shape.name)
def test_a_second_move_starts_the_same_again(shape: Shape) -> None:
    """But for the operator's QMP monitors, which are known by what was kept beside the process."""
    again = judge(shape, command=shape.becomes)
    at = shape.becomes.index(OURS[0])
    assert again.replica.argv == shape.becomes[: at + len(OURS)]
    # Whatever has to be there has to be there again.
    assert {*again.files} >= {file for file in shape.files if not file.startswith("socket ")}
