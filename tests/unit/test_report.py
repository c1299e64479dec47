"""The picture of a run: complete, well-formed, and safe whatever is in it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from migrator.api.documents import DecisionDocument, SampleDocument
from migrator.cli import picture, report
from migrator.cli.client import Rejected
from migrator.cli.recording import Recorder
from migrator.cli.report import main, recorded, render, sampled
from migrator.core.migration.convergence_state import Abilities
from migrator.core.model import Decision, Mode, Sample, State
from migrator.core.policy import builtin
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.errors import UsageError
from tests.documents import a_migration

SVG = "{http://www.w3.org/2000/svg}"


def _samples(many: int = 50) -> list[Sample]:
    return [
        Sample(
            at_seconds=number / 10,
            round=1 + number // 10,
            total_bytes=2**30,
            remaining_bytes=2**30 - number * 2**20,
            dirty_rate_bytes_per_second=5e7 if number > 10 else 0.0,
            bandwidth_bytes_per_second=1e8,
            throttle_ratio=0.2 if number > 20 else 0.0,
        )
        for number in range(many)
    ]


DECISIONS = [
    Decision(
        at_seconds=2.0,
        action="throttle",
        reason="round 3 left 90 MiB",
        numbers={"remaining_bytes": 5, "round": 3},
    ),
    Decision(at_seconds=4.9, action="hand-over", reason="the source cannot run any more"),
]


def _ended(**fields: Any) -> Any:
    some = {
        "state": State.COMPLETED,
        "duration_seconds": 5.0,
        "downtime_seconds": 0.05,
        "max_throttle_ratio": 0.2,
    }
    return a_migration(**{**some, **fields})


def _texts(svg: str) -> list[str]:
    return ["".join(each.itertext()) for each in ET.fromstring(svg).iter(f"{SVG}text")]


def test_it_shows_memory_rates_throttle_decisions_and_downtime() -> None:
    svg = render(_ended(), _samples(), DECISIONS)
    root = ET.fromstring(svg)
    texts = _texts(svg)
    for wanted in (
        "Memory still to be sent",
        "Dirty rate and bandwidth",
        "Throttle",
        "Decisions",
        "downtime 50 ms",
    ):
        assert wanted in texts
    assert any("throttle: round 3 left 90 MiB" in text for text in texts)
    assert any("downtime 50 ms (ceiling 300 ms)" in text for text in texts)
    curves = [path for path in root.iter(f"{SVG}path") if (path.get("class") or "").startswith("curve ")]
    named = {title.text for path in curves for title in path.iter(f"{SVG}title")}
    assert named == {"remaining memory", "dirty rate", "bandwidth", "CPU time taken"}
    assert len([path for path in root.iter(f"{SVG}path") if path.get("class") == "mark"]) == 2
    [span] = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "span"]
    assert float(span.get("width") or 0) >= 2


def test_everything_lies_inside() -> None:
    svg = render(_ended(duration_seconds=0.0003, downtime_seconds=0.0001), _samples(), DECISIONS)
    root = ET.fromstring(svg)
    width, height = (float(root.get(name) or 0) for name in ("width", "height"))
    for element in root.iter():
        if element.get("x") is not None:
            assert 0 <= float(element.get("x") or 0) <= width
            assert 0 <= float(element.get("y") or 0) <= height
    for path in root.iter(f"{SVG}path"):
        for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.get("d") or ""):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a\"b'c&d", "line\nbreak\x00\x1b[31m", "\udcff", "ünïcode ∑"]
)
def test_any_name_is_only_text(name: str) -> None:
    document = _ended().model_copy(update={"guest_name": name, "error": name, "source": name, "policy": name})
    decision = Decision(at_seconds=1.0, action=name, reason=name)
    svg = render(document, _samples(), [decision])
    root = ET.fromstring(svg.encode())
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg",
        "title",
        "desc",
        "style",
        "rect",
        "text",
        "path",
    }
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_it_is_readable_on_a_dark_ground_too() -> None:
    svg = render(_ended(), _samples(), DECISIONS)
    assert "prefers-color-scheme: dark" in svg
    light, _, dark = svg.partition("@media (prefers-color-scheme: dark)")
    assert "var(" not in svg, "few programs but browsers know variables"
    coloured = re.findall(r"^(\S.*?) { (?:fill|stroke): #", light, re.MULTILINE)
    assert len(coloured) > 8
    for what in coloured:
        assert f"  {what} {{" in dark


def test_a_run_without_figures_says_so() -> None:
    svg = render(_ended(state=State.FAILED, duration_seconds=None, error="no route"), [], [])
    texts = _texts(svg)
    assert "no figures were kept of this run" in texts
    assert any("no route" in text for text in texts)
    assert "Decisions" not in texts


def test_a_long_reason_is_broken_into_lines_that_fit() -> None:
    reason = (
        "nothing that the policy allows would let it end, and no quiet moment came in 24 s: giving up " * 3
    )
    texts = _texts(render(_ended(state=State.FAILED, error=reason), _samples(), DECISIONS))
    assert max(map(len, texts)) < 140
    assert reason.strip() in " ".join(texts)


def test_disks_are_drawn_where_somebody_watched_them() -> None:
    assert "Disks still to be copied" not in _texts(render(_ended(), _samples(), DECISIONS))
    svg = render(_ended(), _samples(), DECISIONS, disks=[(0.1, 2.0**26), (0.5, 0.0)])
    assert "64.0 MiB" in _texts(svg)
    assert _paths(svg, "remaining of disks").count("L") == 1


def _paths(svg: str, name: str) -> str:
    [path] = [each for each in ET.fromstring(svg).iter(f"{SVG}path") if each.findtext(f"{SVG}title") == name]
    return path.get("d") or ""


def test_where_nobody_looked_there_is_no_line() -> None:
    samples = [each for each in _samples(100) if not 3.0 < each.at_seconds < 7.0]
    for name in ("remaining memory", "dirty rate", "bandwidth"):
        assert _paths(render(_ended(), _samples(100), []), name).count("M") == 1
        assert _paths(render(_ended(), samples, []), name).count("M") == 2
    # A few figures far from each other are no gap: there are no others.
    sparse = _samples(200)[::40]
    assert _paths(render(_ended(duration_seconds=16.5), sparse, []), "bandwidth").count("M") == 1


def test_marks_do_not_cross_what_is_written_between_the_panels() -> None:
    svg = render(_ended(), _samples(), DECISIONS)
    titles = [
        float(text.get("y") or 0)
        for text in ET.fromstring(svg).iter(f"{SVG}text")
        if text.get("class") == "head" and text.text != "Decisions"
    ]
    assert len(titles) == 3
    marks = [each for each in ET.fromstring(svg).iter(f"{SVG}path") if each.get("class") == "mark"]
    for mark in marks:
        spans = re.findall(r"M[\d.]+ (\d+)V(\d+)", mark.get("d") or "")
        assert len(spans) == 3
        assert not any(float(top) < y < float(bottom) for top, bottom in spans for y in titles)


def test_an_offline_run_has_no_ceiling() -> None:
    assert not any("ceiling" in text for text in _texts(render(_ended(mode=Mode.OFFLINE), _samples(), [])))


def test_a_long_run_stays_a_small_file() -> None:
    assert len(render(_ended(duration_seconds=1e5), _samples(200_000), DECISIONS)) < 200_000


def test_samples_come_from_decisions_where_nothing_else_was_kept() -> None:
    [only] = sampled(DECISIONS)
    assert (only.at_seconds, only.remaining_bytes, only.round) == (2.0, 5, 3)


class _Service:
    """Answers as a service would that has these documents; a status where there is none."""

    def __init__(self, documents: dict[str, Any]) -> None:
        self._documents = documents

    def get(self, path: str) -> Any:
        found = self._documents.get(path, 404)
        if isinstance(found, int):
            raise Rejected(found, "none", "none", [])
        return found


@pytest.mark.parametrize("samples", [404, {"items": []}])
def test_by_id_there_are_those_of_decisions_where_the_service_has_no_others(samples: Any) -> None:
    document = _ended(decisions=[DecisionDocument(**asdict(each)) for each in DECISIONS])
    documents = {"migrations/m1": document.model_dump(mode="json"), "migrations/m1/samples": samples}
    found, points, decisions = report.asked(_Service(documents), "m1")
    assert (found, points, decisions) == (document, sampled(DECISIONS), DECISIONS)


def test_by_id_there_are_those_that_the_service_kept() -> None:
    one = SampleDocument(at_seconds=1.5, state=State.POSTCOPY, remaining_bytes=7, downtime_limit_seconds=0.1)
    documents = {"migrations/m1": _ended().model_dump(mode="json")}
    documents["migrations/m1/samples"] = {"items": [one.model_dump(mode="json") | {"newer": 1}]}
    assert report.asked(_Service(documents), "m1")[1] == [Sample(at_seconds=1.5, remaining_bytes=7)]


def test_a_refusal_is_no_lack_of_samples() -> None:
    documents = {"migrations/m1": _ended().model_dump(mode="json"), "migrations/m1/samples": 403}
    with pytest.raises(Rejected):
        report.asked(_Service(documents), "m1")


@pytest.mark.parametrize(
    ("value", "base", "up"),
    [
        (0, 1000, 1),
        (1, 1000, 1),
        (3, 1000, 5),
        (999, 1000, 1000),
        (0.3, 1000, 0.5),
        (96 * 2**20, 1024, 128 * 2**20),
    ],
)
def test_scales_end_at_round_numbers(value: float, base: int, up: float) -> None:
    assert picture._round_up(value, base) == pytest.approx(up)


def test_one_burst_does_not_press_the_rest_flat() -> None:
    assert picture._most([1.0] * 99 + [50.0]) == 1.0
    assert picture._most([1.0] * 99 + [2.0]) == 2.0
    assert picture._most([0.0] * 99 + [2.0]) == 2.0
    assert picture._most([]) == 0.0


# Recorded runs ---------------------------------------------------------------------------------------------------


def _record(path: Path, *, whole: bool = True) -> None:
    with Recorder(path) as recorder:
        recorder.begin(builtin("gentle"), Abilities(postcopy=True, throttle=True))
        for sample in _samples():
            recorder.status(MigrationProgress(state=State.PRECOPY, progress_ratio=0.5, sample=sample))
        for decision in DECISIONS:
            recorder.decision(decision)
        if whole:
            result = MigrationOutcome(
                id="abc", state=State.COMPLETED, duration_seconds=5.0, downtime_seconds=0.04
            )
            result.max_downtime_seconds, result.rounds = 0.1, 5
            recorder.result(result)


def test_a_recorded_run_becomes_a_picture(tmp_path: Path) -> None:
    _record(tmp_path / "run.jsonl")
    main(str(tmp_path / "run.jsonl"), tmp_path / "run.svg")
    texts = _texts((tmp_path / "run.svg").read_text(encoding="utf-8"))
    assert "Migration abc" in texts
    assert "completed · policy gentle · mode precopy · took 5.0 s · downtime 40 ms (ceiling 100 ms)" in texts


def test_a_guest_in_postcopy_has_its_memory_later_than_it_runs_there() -> None:
    ended = _ended(mode=Mode.POSTCOPY, duration_seconds=0.256)
    first = next(text for text in _texts(render(ended, _samples(), [])) if text.startswith("completed"))
    assert "mode postcopy · ran there after 256 ms, had all of its memory after 4.9 s · downtime" in first
    undone = _ended(mode=Mode.POSTCOPY, duration_seconds=0.256, state=State.FAILED)
    assert any("took 256 ms" in text for text in _texts(render(undone, _samples(), [])))


def test_one_that_was_broken_off_too(tmp_path: Path) -> None:
    _record(tmp_path / "run.jsonl", whole=False)
    document, samples, decisions = recorded(tmp_path / "run.jsonl")
    assert (document.state, len(samples), len(decisions)) == (State.PRECOPY, 50, 2)
    assert render(document, samples, decisions)


def test_fields_of_a_newer_version_do_not_matter(tmp_path: Path) -> None:
    _record(tmp_path / "run.jsonl")
    lines = (tmp_path / "run.jsonl").read_text(encoding="utf-8").splitlines()
    sample = json.dumps({"state": "precopy", "sample": {**asdict(_samples(1)[0]), "new": 1}})
    (tmp_path / "run.jsonl").write_text("\n".join([*lines, sample]), encoding="utf-8")
    assert len(recorded(tmp_path / "run.jsonl")[1]) == 51


@pytest.mark.parametrize(
    "text", ["", "{}", "no", '{"version": 1}', '{"version": 1, "policy": {}}', '{"version": 9}']
)
def test_what_is_no_recorded_run_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="not a recorded run"):
        main(str(tmp_path / "run.jsonl"), tmp_path / "run.svg")
    assert not (tmp_path / "run.svg").exists()


def test_a_file_that_is_not_there_and_an_output_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        main(str(tmp_path / "none.jsonl"), tmp_path / "run.svg")
    _record(tmp_path / "run.jsonl")
    with pytest.raises(UsageError, match="cannot write"):
        main(str(tmp_path / "run.jsonl"), tmp_path / "no" / "run.svg")
