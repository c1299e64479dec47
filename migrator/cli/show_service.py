"""Documents of the service as a person reads them, in lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from migrator import wall_clock
from migrator.cli import remedies
from migrator.cli.show import ceiling, sent, stood_still, took
from migrator.text import clean
from migrator.units import show_bytes, show_rate, show_ratio, show_seconds

Document = Mapping[str, Any]


def service_lines(service: Document) -> list[str]:
    """Return what is to be said of the controllers as a whole."""
    if service["role"] == "alone":
        return [f"{service['instance']} is alone: the journal is its own (version {service['version']})"]
    acting = service["acting"]
    lines = [f"{acting} acts, and plans the site" if acting else "NOBODY ACTS: nothing is planned or begun"]
    if service["role"] == "standby":
        stale = service["stale_seconds"]
        old = "of unknown age" if stale is None else f"{age(stale)} old at most"
        lines.append(f"{service['instance']} answers, and stands by; what it shows is {old}")
    return lines + [f"complaint: {each}" for each in service["complaints"]]


def age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def plan_lines(found: Document) -> list[str]:
    """Return the lines below a plan's table: the guests that would stay and why, and how long it would take."""
    guests, lines, awaited = found["guests"], [], False
    for guest in guests:
        if guest.get("saved_into"):
            lines.append(f"{label(guest)} would be saved into {guest['saved_into']}: {guest['reason']}")
            continue
        told = [each for each in guest["findings"] if each["severity"] == "error" or each["code"] in _STAYS]
        if not guest["possible"] and not told:
            lines.append(f"{label(guest)} would stay: {guest['reason']}")
        for each in told:
            lines += [
                f"{label(guest)} would stay: {each['code']}: {each['message']}",
                f"    what to do: {each['remedy']}",
            ]
        waits = [each for each in guest["findings"] if each["code"] in _WAITS]
        lines += [f"{label(guest)} waits first: {each['message']}" for each in waits]
        awaited = awaited or bool(waits)
    lines += _shut_off_lines(found)
    if stay := found["cannot_move"]:
        text = f"{found['host']} would not be empty: {stay} of {len(guests)} guests cannot move"
        if stay < len(guests):
            text += "; the others would be gone"
    elif guests:
        text = f"{found['host']} would be empty"
    else:
        return lines
    if found["takes_p50_seconds"] is not None and stay < len(guests):
        text += f" after {show_seconds(found['takes_p50_seconds'])}"
        if found["takes_p10_seconds"] is not None and found["takes_p90_seconds"] is not None:
            text += (
                f" ({show_seconds(found['takes_p10_seconds'])} to {show_seconds(found['takes_p90_seconds'])})"
            )
        if awaited:
            text += ", not counting what is waited for"
        if found["lower_bound_seconds"] is not None:
            text += f"; the links allow no less than {show_seconds(found['lower_bound_seconds'])}"
    lines += [f"path {each['note']}" for each in found["paths"] if each["basis"] != "configured"]
    return [clean(line) for line in (*lines, text)]


def _shut_off_lines(found: Document) -> list[str]:
    """Return what is said of the guests that the host's libvirt has shut off: they stay on a host that is emptied."""
    many = found.get("guests_shut_off", 0)
    if many is None:
        return [f"{found['host']}: its libvirt could not be asked which guests it has shut off"]
    if not many:
        return []
    what, them = (f"{many} guests", "them") if many > 1 else ("a guest", "it")
    return [
        f"{found['host']} keeps {what} that libvirt has shut off: virsh list --inactive names {them}",
        "    what to do: virsh migrate --offline --persistent --undefinesource takes a definition to another host",
    ]


def homecoming_lines(found: Document) -> list[str]:
    """Return the lines that say who comes home with a restore, by which policies, and what each allows."""
    many = found["guests"]
    if not many:
        return [clean(f"no guest is away from {found['host']}: only its maintenance ends")]
    lines = [f"{many} guest{'s come' if many > 1 else ' comes'} home to {found['host']}:"]
    for each in found["policies"]:
        if each["policy"]:
            lines.append(f"    {each['guests']} by the policy {each['policy']} (another: --policy NAME)")
            lines += [f"        {sentence}" for sentence in each["allows"]]
        else:
            lines.append(f"    {each['guests']} by {'their' if each['guests'] > 1 else 'its'} own policy")
    return [clean(line) for line in lines]


def in_time(found: Document, left: timedelta, *, what: str = "deadline") -> str:
    """Say whether a plan is forecast to be done in the time that is left, before a deadline or the end of a window."""
    middle, late = found["takes_p50_seconds"], found["takes_p90_seconds"]
    if middle is None or found["cannot_move"]:
        return f"the {what} would pass with guests still there"
    seconds = left.total_seconds()
    if middle > seconds:
        return f"the {what} would be missed by {show_seconds(middle - seconds)}"
    if (late or middle) > seconds:
        return f"the {what} may be missed: {show_seconds(seconds - middle)} to spare at most likely"
    return f"the {what} would be kept, with {show_seconds(seconds - middle)} to spare"


#: States of a guest of an evacuation with which nothing is done now.
_STAYING = ("held", "set-aside", "no-target")
#: Warnings by which a guest is expected to stay.
_STAYS = ("does-not-converge",)
#: Findings by which a guest waits before it moves, nobody knows how long.
_WAITS = ("block-job-waits", "block-export-waits")


def cancelled_line(one: Document) -> str:
    """Say what becomes of a migration or an evacuation that is cancelled."""
    if one["ended_at"] is not None:
        return clean(f"{one['id']} is {one['state']}")
    return clean(
        f"{one['id']} is being cancelled, and ends as soon as that is safe; until then {_goes_on(one['state'])}"
    )


def postcopy_line(one: Document) -> str:
    """Say what becomes of a migration that is told to go to postcopy."""
    return clean(
        f"{one['id']} ({label(one)}) goes on in postcopy in a moment; until then {_goes_on(one['state'])}"
    )


def _goes_on(state: str) -> str:
    """Say what still happens in a state, as a person would."""
    return {
        "queued": "it waits for its turn",
        "waiting": "it waits",
        "preparing": "it is being prepared",
        "mirroring": "its disks are being copied",
        "precopy": "its memory is being copied",
        "switchover": "it is being switched over",
        "postcopy": "it fetches the rest of its memory",
        "recovering": "its broken stream is being mended",
        "running": "its guests go on as they do",
        "scheduled": "it waits for its window",
    }.get(state, f"it is {state}")


def exceeded(one: Document) -> bool:
    """Tell whether it completed, and the guest stood still for longer than its policy allows."""
    return one["state"] == "completed" and bool(one.get("ceiling_exceeded"))


def label(document: Document) -> str:
    """Return the guest's name where it has one, else its id."""
    return str(document["guest_name"] or document["guest"])


def forecast(one: Document) -> str:
    """Format the time left: ``12.0 s (9.0 s to 20.0 s)``."""
    found = one["forecast"]
    if not found or found["p50_seconds"] is None:
        return _no_end(found) if found else ""
    text = show_seconds(found["p50_seconds"])
    if found["p10_seconds"] is not None and found["p90_seconds"] is not None:
        text += f" ({show_seconds(found['p10_seconds'])} to {show_seconds(found['p90_seconds'])})"
    return text


def _no_end(found: Document) -> str:
    """Say to a person what a forecast without a time means."""
    if found["verdict"] == "cannot":
        return "its policy does not let it end"
    if found["verdict"] == "unknown":
        return ""
    if found["verdict"] == "converges-if":
        return f"it takes {_RUNGS.get(found['rung'], found['rung'])} to end"
    return str(found["verdict"])


#: Rungs of the controller's ladder, in words.
_RUNGS = {"throttle": "throttling", "start-postcopy": "postcopy", "pause": "a pause"}


def figures(one: Document) -> str:
    """Format the figures that change, the most important first: ``round 2, 96.0 MiB left, 3.0 s to go, …``."""
    ends = " to end" if one.get("state") == "waiting" else ""
    parts = [f"waits for {one['waiting_for']}{ends}"] if one.get("waiting_for") else []
    parts += [f"round {one['round']}"] if one["round"] else []
    if one["remaining_bytes"] is not None:
        parts.append(f"{show_bytes(one['remaining_bytes'])} left")
    found = one["forecast"] or {}
    if found.get("waiting_for") and found["p50_seconds"] is None:
        parts.append(f"waits for {found['waiting_for']}")
    if text := forecast(one):
        if one["forecast"]["p50_seconds"] is not None:
            middle, bracket, span = text.partition(" (")
            text = f"{middle} to go{bracket}{span}"
        parts.append(text)
    if one["bandwidth_bytes_per_second"]:
        parts.append(f"stream {show_rate(one['bandwidth_bytes_per_second'])}")
    if one["dirty_rate_bytes_per_second"]:
        parts.append(f"dirtied {show_rate(one['dirty_rate_bytes_per_second'])}")
    if one["throttle_ratio"] > 0.01:
        parts.append(f"throttled {show_ratio(one['throttle_ratio'])}")
    return ", ".join(parts)


def finding_lines(findings: Iterable[Document]) -> list[str]:
    """Return the lines for findings of preflight, with what to do."""
    lines = []
    for finding in findings:
        lines.append(clean(f"{finding['severity']} {finding['code']}: {finding['message']}"))
        lines.append(clean(f"    what to do: {finding['remedy']}"))
    return lines


def migration_lines(one: Document) -> list[str]:
    """Return the lines that describe one migration in full."""
    lines = [
        f"{one['id']}: {label(one)} {_ends(one)}"
        + (f", asked for by {one['requested_by']}" if one["requested_by"] else "")
        + (f", in evacuation {one['evacuation']}" if one["evacuation"] else "")
        + (f", together with group {one['moved_with']}" if one.get("moved_with") else "")
    ]
    lines.append(f"{one['state']}" + (f": {one['error']}" if one["error"] else ""))
    if one["ended_at"] is None and one["state"] != "held":
        lines.append(f"    {show_ratio(one['progress_ratio'])}, {figures(one) or 'nothing sent yet'}")
    if one["duration_seconds"] is not None:
        downtime = "none measured"
        if one["downtime_seconds"] is not None:
            downtime = show_seconds(one["downtime_seconds"])
            if (one["downtime_uncertainty_seconds"] or 0) > 0.001:
                downtime += f" (give or take {show_seconds(one['downtime_uncertainty_seconds'])})"
        downtime += stood_still(one["downtime_seconds"], one.get("standstill_seconds"))
        limit = one["downtime_limit_seconds"]
        given = "" if limit is None else f", QEMU was given {show_seconds(limit)}"
        whole = _whole(one)
        lines.append(
            f"    {one['mode']}, {took(one['mode'], one['state'], one['duration_seconds'], whole_seconds=whole)}, "
            f"downtime {downtime} "
            f"({ceiling(one['max_downtime_seconds'], exceeded=exceeded(one), mode=one['mode'])}{given}), "
            f"{sent(one['transferred_bytes'], disk_bytes=one.get('disk_bytes', 0), tls=one.get('tls', False))}"
        )
    if one["state"] == "completed" and one["network_state"] not in ("unknown", "none"):
        problem = f": {one['network_problem']}" if one["network_problem"] else ""
        lines.append(f"    network {one['network_state']}{problem}")
    if one["state"] == "held":
        lines.append(
            f"    held ({one['held_code']}): look at both QEMUs (query-status, query-migrate), and say where it is:"
        )
        for side in ("source", "destination"):
            socket = one.get(f"{side}_socket") or "no QMP socket is known"
            lines.append(f"        {side}: host {one[side]}, {socket}")
        if one.get("held_until"):
            lines.append(f"    waits for {one['held_until']}")
        lines.append(f"    migrator resolve {one['id']} --guest-at source|destination|lost")
    if one["state"] == "failed":
        lines += remedies.failed(one["error"], another_policy=one["policy"] != remedies.MUST_FINISH)
    lines += [f"    {line}" for line in finding_lines(one["findings"])]
    lines += [decision_line(decision) for decision in one["decisions"]]
    return [clean(line) for line in lines]


def _whole(one: Document) -> float | None:
    """Return how long a migration took in all, as postcopy does long after the guest runs there."""
    began, ended = one.get("started_at"), one.get("ended_at")
    if not began or not ended:
        return None
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()


def _ends(one: Document) -> str:
    """Return the words on where a migration leads, and under which policy."""
    match one.get("file_use"):
        case "save":
            return f"from {one['source']} into {one['file']}"
        case "load":
            return f"from {one['file']} to {one['destination']}"
        case _:
            return f"from {one['source']} to {one['destination']}, policy {one['policy']}"


def resolution_lines(answer: Document) -> list[str]:
    """Return the lines that say what an answer on a held migration would come to."""
    if not answer["accepted"]:
        return [clean(f"{answer['migration']}: refused: {refused_answer(answer)}")]
    lines = [f"{answer['migration']}: the guest is at the {answer['guest_at']}; this will be done:"]
    if answer["guest_at"] == "lost":
        lines = [f"{answer['migration']}: the guest is lost; this will be done:"]
    return [clean(line) for line in (*lines, *(f"    {each}" for each in answer["will"]))]


def refused_answer(answer: Document) -> str:
    """Return why an answer on a held migration is refused, with the command that would be taken."""
    words = "|".join(answer["instead"])
    command = f": migrator resolve {answer['migration']} --guest-at {words}" if words else ""
    return f"{answer['refused']}{command}"


def evacuation_lines(one: Document) -> list[str]:
    """Return the lines that describe one evacuation in full."""
    reasons = [guest["reason"] for guest in one["guests"] if guest["reason"]]
    error = one["error"] or ""
    if one["guests_left"] and error.startswith(
        f"{one['guests_left']} guest"
    ):  # said below, each guest in its line
        error = ""
    lines = [f"{one['id']}: {_whose(one)}, {one['state']}" + (f": {error}" if error else "")]
    if one.get("starts_at") or one.get("window_ends_at"):
        lines.append(f"    window {_window(one)}" + (f"; {one['window_note']}" if one["window_note"] else ""))
    if one["state"] == "scheduled":
        lines.append(f"    forecast: {one['window_forecast'] or 'not made yet'}")
    if one["deadline"] and one["state"] != "scheduled":
        late = ": late" if one["late"] else ": at risk" if one["at_risk"] and not one["ended_at"] else ""
        lines.append(f"    deadline {_clock(one['deadline'])} ({one['on_deadline']}){late}")
    if one["ended_at"] is None and one["forecast_end_at"]:
        span = ""
        if one["forecast_end_p10_at"] and one["forecast_end_p90_at"]:
            span = f" (between {_clock(one['forecast_end_p10_at'])} and {_clock(one['forecast_end_p90_at'])})"
        if any(guest.get("doubt") or guest["standing"] in _STAYING for guest in one["guests"]):
            span += ", without those that are not expected to leave"
        lines.append(f"    forecast to end {_clock(one['forecast_end_at'])}{span}")
    for host in one.get("hosts", ()):
        by = " ".join(each for each in (host["evacuation"], host["restore"]) if each)
        why = f": {host['reason']}" if host["reason"] else ""
        lines.append(f"    {host['stage']:<11} {host['host']}{f' ({by})' if by else ''}{why}")
    for guest in one["guests"]:
        target = f" to {guest['target']}" if guest["target"] else ""
        by = f" ({guest['migration']})" if guest["migration"] else ""
        said = "; ".join(text for text in (guest["reason"], guest.get("doubt")) if text)
        why = f": {said}" if said else ""
        lines.append(f"    {guest['standing']:<10} {label(guest)}{target}{by}{why}")
    if one["guests_left"]:
        lines.append("    " + guests_left(one, where=f"on {one['host']}"))
    lines += [f"    {line}" for line in _shut_off_lines(one)]
    if one["ended_at"] is not None:
        lines += remedies.failed("; ".join(reasons), another_policy=one["policy"] != remedies.MUST_FINISH)
    return [clean(line) for line in lines]


def _window(one: Document) -> str:
    """Return the words on when an evacuation may run."""
    starts, ends = _clock(one["starts_at"]), _clock(one["window_ends_at"])
    return " ".join(each for each in (starts and f"from {starts}", ends and f"until {ends}") if each)


def _whose(one: Document) -> str:
    """Return the words on what an evacuation is."""
    match one["kind"]:
        case "group":
            return f"move of group {one['group']}" + (f" to {one['target']}" if one["target"] else "")
        case "roll":
            return f"roll through {len(one['hosts'])} hosts, {one['max_unavailable']} at a time"
        case "evacuate":
            return f"evacuation of {one['host']}"
    return f"restore of {one['host']}"


def decision_line(decision: Document) -> str:
    """Format one decision: when, what, why."""
    return f"{decision['at_seconds']:8.3f} s  {decision['action']}: {decision['reason']}"


def event_line(event: Document) -> str:
    """Format one event on one line."""
    body = event["body"]
    when = wall_clock.show(datetime.fromisoformat(event["time"]))
    what = f"{event['subject']} {event['subject_id']}"
    if event["kind"] == "command":
        where = body.get("origin") or "somewhere"
        what = f"command of {body.get('user', '?')} ({body.get('interface', '?')}, {where})"
        text = f"{body.get('verb', '?')}: {body.get('answer', '?')}"
        text += f" ({body['code']})" if body.get("code") else ""
        text += f", {body['subject']} {body['subject_id']}" if body.get("subject_id") else ""
        text += f": {body['message']}" if body.get("message") else ""
    elif event["kind"] == "decision":
        text = f"{body.get('action', '')}: {body.get('reason', '')}"
    else:
        text = str(body.get("state", ""))
        name = body.get("guest_name") or body.get("guest")
        text += f" ({name})" if name else ""
        text += f": {body['error']}" if body.get("error") else _how_far(body)
    return clean(f"{event['event_id']:>6}  {when}  {what}  {text}")


def _how_far(body: Document) -> str:
    """Say how far a roll is, or what is expected of a window; empty for anything else."""
    if body.get("kind") == "roll":
        return ": " + ", ".join(f"{each['host']} {each['stage']}" for each in body.get("hosts", ()))
    if body.get("state") == "scheduled":
        soon = "it begins soon; " if body.get("begins_soon") else ""
        return f" ({body.get('host')}): {soon}{body.get('window_forecast') or 'not forecast yet'}"
    return ", cordoned" if body.get("cordoned") else ""


def moved_together(one: Document) -> str:
    """Return the host that an evacuation or a restore is of; of a group, which has none, the group."""
    return f"group {one['group']}" if one["kind"] == "group" else str(one["host"])


def guests_left(one: Document, total: int | None = None, *, where: str = "there") -> str:
    """Format ``2 of 5 guests still there``; of a restore those that are not at home, of a group those not moved."""
    of = f" of {total}" if total is not None else ""
    noun = "guest" if one["guests_left"] == 1 and total is None else "guests"
    still = {"evacuate": f"still {where}", "group": "not moved"}.get(one["kind"], "not at home")
    return f"{one['guests_left']}{of} {noun} {still}"


def left(one: Document) -> str:
    """Format the seconds to the deadline for people; negative ones are late."""
    if not one["deadline"]:
        return ""
    seconds = (datetime.fromisoformat(one["deadline"]) - datetime.now(UTC)).total_seconds()
    return f"{show_seconds(seconds)} left" if seconds >= 0 else f"{show_seconds(-seconds)} late"


def _clock(text: str | None) -> str:
    return "" if text is None else wall_clock.show(datetime.fromisoformat(text))
