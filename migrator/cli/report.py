"""``migrator report``: one run as an SVG timeline.

From a file that ``direct --record`` wrote, or from the service by the migration's id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from migrator.api.documents import DecisionDocument, MigrationDocument
from migrator.cli.picture import Curve, Mark, Panel, TimeSpan, picture
from migrator.cli.recording import read
from migrator.cli.show import took
from migrator.core.model import STOPPED_MODES, Decision, Sample, State
from migrator.errors import UsageError
from migrator.units import show_bytes, show_rate, show_ratio, show_seconds

_Kind = TypeVar("_Kind", Sample, Decision)


def main(which: str, output: Path, *, server: str | None = None) -> None:
    """Write the picture of `which` to `output`: a recorded run if there is such a file, else a migration's id.

    Exits with the code of what went wrong with the service.

    :raise UsageError: it is neither, or `output` cannot be written.
    """
    path = Path(which)
    if path.is_file() or path.suffix == ".jsonl":
        _write(output, render(*recorded(path)))
        return
    from migrator.cli import remote  # noqa: PLC0415 - a picture of a file needs no service
    from migrator.cli.client import ServiceClient  # noqa: PLC0415

    def draw(client: ServiceClient) -> None:
        _write(output, render(*asked(client, which)))

    remote.run(draw, server)


def _write(output: Path, text: str) -> None:
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from error


def recorded(path: Path) -> tuple[MigrationDocument, list[Sample], list[Decision]]:
    """Read a run that ``direct --record`` wrote; one that was broken off has no result.

    :raise UsageError: when the file is not one.
    """
    lines = read(path)
    try:
        samples = [_made(Sample, line["sample"]) for line in lines if "sample" in line]
        decisions = [_made(Decision, line["decision"]) for line in lines if "decision" in line]
        states = [line["state"] for line in lines if "state" in line]
        result: Mapping[str, Any] = next((line["result"] for line in lines if "result" in line), {})
        known = {name: value for name, value in result.items() if name in MigrationDocument.model_fields}
        document = MigrationDocument.model_validate(
            {
                "id": path.stem,
                "state": states[-1] if states else State.PRECOPY,
                "max_downtime_seconds": lines[0]["policy"]["max_downtime_seconds"],
                **known,
                "guest": "",
                "source": "source",
                "destination": "destination",
                "policy": lines[0]["policy"]["name"],
                "created_at": datetime.fromtimestamp(path.stat().st_mtime, UTC),
                "round": result.get("rounds", samples[-1].round if samples else 0),
                "decisions": [],
            }
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise UsageError(f"{path} is not a recorded run: {error}") from error
    return document, samples, decisions


def asked(client: Any, identifier: str) -> tuple[MigrationDocument, list[Sample], list[Decision]]:
    """Return what a service knows of a migration: its document, the figures that were kept, and what was decided.

    :raise Rejected: there is no such migration.
    """
    from migrator.cli.client import Rejected, segment  # noqa: PLC0415

    path = f"migrations/{segment(identifier)}"
    document = MigrationDocument.model_validate(client.get(path))
    try:
        samples = [_made(Sample, each) for each in client.get(f"{path}/samples")["items"]]
    except Rejected as error:
        if error.status != 404:
            raise
        samples = []  # an older service
    decisions = [
        Decision(
            at_seconds=each.at_seconds, action=each.action, reason=each.reason, numbers=dict(each.numbers)
        )
        for each in document.decisions
    ]
    return document, samples or sampled(decisions), decisions


def sampled(decisions: Sequence[Decision]) -> list[Sample]:
    """Return the samples that decisions rest on, for a migration whose service kept no others."""
    return [
        _made(Sample, {**each.numbers, "at_seconds": each.at_seconds})
        for each in decisions
        if "remaining_bytes" in each.numbers
    ]


def _made(kind: type[_Kind], values: Mapping[str, Any]) -> _Kind:
    """Make a value of an older or newer version of `kind` too: unknown fields are left out."""
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in known})


# The picture -----------------------------------------------------------------------------------------------------


def render(
    document: MigrationDocument,
    samples: Sequence[Sample],
    decisions: Sequence[Decision | DecisionDocument],
    *,
    disks: Sequence[tuple[float, float]] = (),
) -> str:
    """Render the timeline as SVG: remaining memory, dirty rate and bandwidth, throttle, decisions, downtime.

    Readable on light and dark grounds; every text in it is escaped. It needs no font, script or file beside it.

    :param disks: seconds, and bytes of disks that were still to be copied, where somebody has noted them on the way.
    """
    samples = sorted(samples, key=lambda sample: sample.at_seconds)
    ends = [sample.at_seconds for sample in samples] + [each.at_seconds for each in decisions]
    if document.duration_seconds is not None:
        ends.append(document.duration_seconds)
    end = max(ends, default=0.0) or 1.0
    return picture(
        title=_title(document),
        facts=_facts(document, samples),
        alarm=document.ceiling_exceeded,
        panels=[*_disks(disks), *_panels(document, samples, end)],
        marks=[_mark(number, each) for number, each in enumerate(decisions, start=1)],
        spans=_spans(document),
        end_seconds=end,
    )


def _title(document: MigrationDocument) -> str:
    guest = document.guest_name or document.guest
    path = f"{document.source} → {document.destination}"
    return f"{guest}: {path}" if guest else f"Migration {document.id}"


def _facts(document: MigrationDocument, samples: Sequence[Sample]) -> list[str]:
    ceiling = show_seconds(document.max_downtime_seconds)
    first = [f"{document.state}", f"policy {document.policy}", f"mode {document.mode}"]
    if document.duration_seconds is not None:
        whole = samples[-1].at_seconds if samples else None
        first.append(took(document.mode, document.state, document.duration_seconds, whole_seconds=whole))
    if document.downtime_seconds is not None:
        above = "above its ceiling of" if document.ceiling_exceeded else "ceiling"
        asked = "" if document.mode in STOPPED_MODES else f" ({above} {ceiling})"
        first.append(f"downtime {show_seconds(document.downtime_seconds)}{asked}")
    if document.postcopy_stall_seconds is not None:
        first.append(f"waited {show_seconds(document.postcopy_stall_seconds)} for pages")
    second = [f"{show_bytes(document.transferred_bytes)} sent"] if document.transferred_bytes else []
    if document.queued_at_stop_bytes is not None:
        second.append(f"{show_bytes(document.queued_at_stop_bytes)} queued at STOP")
    if document.round:
        second.append(f"{document.round} rounds")
    if document.max_throttle_ratio:
        second.append(f"throttled up to {show_ratio(document.max_throttle_ratio)}")
    if document.error:
        second.append(document.error)
    return [" · ".join(line) for line in (first, second) if line]


def _panels(document: MigrationDocument, samples: Sequence[Sample], end: float) -> list[Panel]:
    def curve(name: str, style: str, value: Any, *, area: bool = False, steps: bool = False) -> Curve:
        points = [(sample.at_seconds, float(value(sample))) for sample in samples]
        return Curve(name=name, style=style, points=points, area=area, steps=steps)

    remaining = curve("remaining memory", "a", lambda sample: sample.remaining_bytes, area=True)
    if document.state is State.COMPLETED and remaining.points and remaining.points[-1][0] < end:
        remaining.points.append((end, 0.0))
    panels = [
        Panel(title="Memory still to be sent", curves=[remaining], show=show_bytes, base=1024, height=150),
        Panel(
            title="Dirty rate and bandwidth",
            curves=[
                curve("dirty rate", "b", lambda sample: sample.dirty_rate_bytes_per_second, steps=True),
                curve("bandwidth", "a", lambda sample: sample.bandwidth_bytes_per_second),
            ],
            show=show_rate,
            base=1024,
            height=130,
        ),
    ]
    if any(sample.throttle_ratio for sample in samples):
        throttle = curve("CPU time taken", "c", lambda sample: sample.throttle_ratio, steps=True)
        panels.append(
            Panel(title="Throttle", curves=[throttle], show=show_ratio, base=1000, height=70, top=1.0)
        )
    return panels


def _disks(points: Sequence[tuple[float, float]]) -> list[Panel]:
    if not points:
        return []
    left = Curve(name="remaining of disks", style="c", points=list(points))
    return [Panel(title="Disks still to be copied", curves=[left], show=show_bytes, base=1024, height=90)]


def _mark(number: int, decision: Decision | DecisionDocument) -> Mark:
    return Mark(
        number=number,
        at_seconds=decision.at_seconds,
        text=f"{show_seconds(decision.at_seconds)}  {decision.action}: {decision.reason}",
    )


def _spans(document: MigrationDocument) -> list[TimeSpan]:
    duration, downtime = document.duration_seconds, document.downtime_seconds
    if duration is None or downtime is None or document.state is not State.COMPLETED:
        return []
    begin = max(0.0, duration - downtime)
    text = f"downtime {show_seconds(downtime)}"
    if document.ceiling_exceeded:
        text += f", above its ceiling of {show_seconds(document.max_downtime_seconds)}"
    return [TimeSpan(begin=begin, end=duration, text=text, bad=document.ceiling_exceeded)]
