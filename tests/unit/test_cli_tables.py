"""Tables of what the service says: they fit, and nothing in them moves the cursor."""

from __future__ import annotations

import io
import unicodedata
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.cells import cell_len
from rich.console import Console

from migrator.api.commands import Save
from migrator.api.field_errors import describe
from migrator.cli import columns, screen, tables, tokens
from migrator.cli import show_service as show
from migrator.cli.client import ServiceClient
from migrator.text import clean

_ROWS = st.lists(st.lists(st.text(max_size=30), min_size=8, max_size=8), max_size=6)


@given(rows=_ROWS, width=st.integers(20, 200))
def test_no_line_is_wider_than_the_terminal(rows: list[list[str]], width: int):
    for line in tables.grid(columns.GUESTS, rows, width=width).plain.split("\n"):
        assert cell_len(line) <= width


@given(st.text())
def test_clean_text_has_no_controls(text: str):
    cleaned = clean(text)
    assert len(cleaned) == len(text)
    assert not {unicodedata.category(char) for char in cleaned} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_names_give_way_before_columns_do_and_lesser_columns_before_what_matters():
    row = [
        "a-rather-long-name-of-a-guest",
        "alpha",
        "running",
        "1.0 GiB",
        "",
        "default",
        "u" * 36,
        "cannot move: x",
    ]
    wide = tables.grid(columns.GUESTS, [row], width=200).plain
    assert all(cell in wide for cell in row)
    assert "DIRTIED" not in wide, "a column without anything in it only takes room"
    narrow = tables.grid(columns.GUESTS, [row], width=60).plain
    assert "UUID" not in narrow
    assert "alpha" in narrow
    assert "running" in narrow
    assert "…" in narrow


def test_a_note_goes_on_below_instead_of_being_cut():
    note = "cannot move: blocked: the qcow format used by node 'disk' does not support live migration"
    row = ["web", "alpha", "running", "1.0 GiB", "", "default", "u" * 36, note]
    lines = tables.grid(columns.GUESTS, [row, ["db", *row[1:7], ""]], width=80).plain.split("\n")
    place = lines[0].index("NOTE")
    assert " ".join(line[place:].strip() for line in lines[1:-1]) == note
    assert lines[-1].startswith("db")
    assert all(line[:place].strip() == "" for line in lines[2:-1])


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_reasons_are_never_cut_whatever_the_width(width: int):
    why = " ".join(f"reason{n}" for n in range(60)) + " " + "x" * 300
    row = [
        "1",
        "a-rather-long-name-of-a-guest",
        "nowhere",
        "1.0 s",
        "2.0 s",
        "300 ms",
        "must-finish",
        why,
        "",
    ]
    shown = tables.grid(columns.PLAN, [row], width=width).plain
    assert all(cell_len(line) <= width for line in shown.split("\n"))
    assert "".join(why.split()) in "".join(shown.split())
    host = ["alpha", "draining", "down", "3", "1.0 GiB", "2.0 GiB", "1.0 MiB/s", why]
    shown = tables.grid(columns.HOSTS, [host], width=width).plain
    assert "".join(why.split()) in "".join(shown.split())


@pytest.mark.parametrize("width", [40, 80, 120])
def test_policies_keep_their_names_and_every_word_of_what_they_allow(width: int):
    allows = [f"sentence{number}" for number in range(40)]
    lines = tables.grid(
        ("POLICY", "GUESTS", "FROM", "ALLOWS"),
        [("gentle (default)", "2", "built in", " ".join(allows))],
        width=width,
    ).plain
    assert set(allows) < set(lines.split())
    assert "gentle (default)" in lines


def test_a_saved_guest_is_shown_with_its_file_and_where_it_can_be_loaded():
    hosts = ", ".join(f"host-{number}" for number in range(12))
    row = (
        "db-1",
        "host-1",
        "/srv/saved/db-1.state",
        "2026-11-30 02:30",
        "1.0 GiB",
        "10.0.2",
        "saved",
        hosts,
        "",
    )
    header = ("GUEST", "HOST", "FILE", "SAVED", "SIZE", "BY QEMU", "STATE", "CAN BE LOADED ON", "NOTE")
    lines = tables.grid(header, [row], width=80).plain
    assert "/srv/saved/db-1.state" in lines
    assert set(hosts.split()) < set(lines.split())


def test_the_state_of_a_token_fits_a_usual_terminal():
    row = [
        "scheduler-of-the-second-site",
        "operator",
        "5056aa2d991f",
        *["2026-11-22 23:35 UTC"] * 2,
        "expired",
        "host-7 rack-3-*",
    ]
    shown = tables.grid(tokens.HEADER, [row], width=80).plain
    assert all(cell_len(line) <= 80 for line in shown.split("\n"))
    for word in ("STATE", "expired", "host-7", "rack-3-*"):
        assert word in shown


@pytest.mark.parametrize(
    ("forecast", "said"),
    [
        (None, "round 2, 1.0 MiB left, stream 2.0 MiB/s"),
        (("converges", "", 3.0), "round 2, 1.0 MiB left, 3.0 s to go, stream 2.0 MiB/s"),
        (("cannot", "", None), "round 2, 1.0 MiB left, its policy does not let it end, stream 2.0 MiB/s"),
        (
            ("converges-if", "throttle", None),
            "round 2, 1.0 MiB left, it takes throttling to end, stream 2.0 MiB/s",
        ),
        (
            ("unknown", "", None),
            "round 2, 1.0 MiB left, waits for a quiet moment, stream 2.0 MiB/s",
        ),
    ],
)
def test_figures_say_the_time_left_before_the_rates_and_the_verdict_in_words(forecast: Any, said: str):
    found = forecast and {
        "verdict": forecast[0],
        "rung": forecast[1],
        "waiting_for": "a quiet moment" if forecast[0] == "unknown" else "",
        "p10_seconds": None,
        "p50_seconds": forecast[2],
        "p90_seconds": None,
    }
    one = {
        "round": 2,
        "remaining_bytes": 1 << 20,
        "bandwidth_bytes_per_second": 2 << 20,
        "dirty_rate_bytes_per_second": None,
        "throttle_ratio": 0.0,
        "forecast": found,
    }
    assert show.figures(one) == said


@pytest.mark.parametrize("width", [1, 2, 5, 10])
def test_a_terminal_that_is_far_too_narrow(width: int):
    for line in tables.grid(columns.HOSTS, [["alpha"] * 8], width=width).plain.split("\n"):
        assert cell_len(line) <= width


def test_a_command_in_the_journal_is_one_line_that_says_who_asked_for_what_from_where_with_what_answer():
    event = {
        "event_id": 5,
        "sequence": 1,
        "time": "2026-11-22T21:41:49Z",
        "kind": "command",
        "subject": "command",
        "subject_id": "unix:0\n7337e9b5",
        "body": {
            "verb": "migrate",
            "user": "unix:0",
            "interface": "http",
            "origin": "unix socket, pid 17452",
            "answer": "accepted",
            "subject": "migration",
            "subject_id": "dcf0a6c68d73",
        },
    }
    line = show.event_line(event)
    assert (
        "command of unix:0 (http, unix socket, pid 17452)  migrate: accepted, migration dcf0a6c68d73" in line
    )
    assert "\n" not in line


def test_the_screen_has_the_numbers_of_its_own_last_line():
    host = {
        "host": "a",
        "state": "active",
        "up": True,
        "guests": 5,
        "link_bytes_per_second": None,
        "error": "",
    }
    host |= {"memory_free_bytes": 1, "memory_total_bytes": 2}

    class Asked:
        def get(self, path: str, **_: str) -> Any:
            return {"items": [host] if path == "hosts" else []}

    state = screen.LiveState(cast(ServiceClient, Asked()))
    state.fetch()
    event = {"event_id": 7, "time": "2026-11-22T23:37:44+00:00", "kind": "state"}
    state.take({**event, "subject": "host", "subject_id": "a", "body": {"guests": 4, "state": "draining"}})
    console = Console(width=100, file=io.StringIO())
    console.print(state.draw(100))
    shown = cast(io.StringIO, console.file).getvalue().splitlines()
    assert shown[1].split()[:4] == ["a", "draining", "up", "4"]


@pytest.mark.parametrize(
    ("kind", "left", "total", "said"),
    [
        ("evacuate", 1, None, "1 guest still there"),
        ("evacuate", 2, 5, "2 of 5 guests still there"),
        ("restore", 1, None, "1 guest not at home"),
        ("restore", 1, 3, "1 of 3 guests not at home"),
        ("group", 2, 3, "2 of 3 guests not moved"),
    ],
)
def test_guests_that_are_left_of_an_evacuation_and_not_back_from_one(
    kind: str, left: int, total: int | None, said: str
):
    assert show.guests_left({"kind": kind, "guests_left": left}, total) == said


def test_a_group_that_moves_is_called_so_as_it_leaves_no_host() -> None:
    assert show.moved_together({"kind": "group", "group": "shop", "host": ""}) == "group shop"
    assert show.moved_together({"kind": "restore", "group": None, "host": "a"}) == "a"


def _evacuation(kind: str, **more: Any) -> dict[str, Any]:
    why = "failed 3 times; the last time: nothing would let it end: giving up"
    guest = {"guest_name": "web", "guest": "u", "standing": "failed", "target": "b", "migration": "m3"}
    return {
        "id": "e1",
        "kind": kind,
        "host": "a",
        "policy": "",
        "state": "incomplete",
        "error": f"1 guest still on a: web: {why}",
        "deadline": None,
        "ended_at": "2026-11-22T23:37:44+00:00",
        "guests": [{**guest, "reason": why}],
        "guests_left": 1,
        **more,
    }


@pytest.mark.parametrize(
    ("policy", "remedy"), [("", "quieter, or with --policy must-finish"), ("must-finish", "quieter")]
)
@pytest.mark.parametrize("kind", ["evacuate", "restore"])
def test_an_evacuation_that_gave_up_on_a_guest_says_so_once_and_what_to_do(
    kind: str, policy: str, remedy: str
):
    lines = show.evacuation_lines(_evacuation(kind, policy=policy))
    assert lines[0].endswith("of a, incomplete")
    assert "\n".join(lines).count("giving up") == 1
    assert lines[-1] == f"    what to do: try again when the guest is {remedy}"


def test_what_no_guest_is_the_reason_of_is_said_of_the_evacuation():
    one = _evacuation("evacuate", error="the host is gone", guests=[], guests_left=0)
    assert show.evacuation_lines(one) == ["e1: evacuation of a, incomplete: the host is gone"]


@pytest.mark.parametrize(("many", "words"), [(0, []), (1, ["a guest"]), (30, ["30 guests"])])
def test_a_plan_says_what_stays_shut_off_on_a_host_that_would_be_empty(many: int, words: list[str]):
    plan = {"host": "alpha", "guests": [], "paths": [], "cannot_move": 0, "guests_shut_off": many}
    lines = show.plan_lines(plan)
    assert [word for word in words if word not in lines[0]] == []
    assert [line for line in lines if "virsh migrate --offline" in line] == lines[1:]
    assert bool(lines) is bool(many)


def test_an_evacuation_says_what_stays_shut_off_on_the_host_that_it_emptied():
    done = _evacuation("evacuate", state="completed", error=None, guests=[], guests_left=0)
    assert show.evacuation_lines(done | {"guests_shut_off": 0}) == ["e1: evacuation of a, completed"]
    first, what, todo = show.evacuation_lines(done | {"guests_shut_off": 2})
    assert first == "e1: evacuation of a, completed"
    assert what == "    a keeps 2 guests that libvirt has shut off: virsh list --inactive names them"
    assert "virsh migrate --offline" in todo
    assert show.evacuation_lines(done | {"guests_shut_off": None})[1:] == [
        "    a: its libvirt could not be asked which guests it has shut off"
    ]


def test_a_running_evacuation_has_no_remedy_yet():
    lines = show.evacuation_lines(_evacuation("evacuate", ended_at=None, error=None, forecast_end_at=None))
    assert not any("what to do" in line for line in lines)


@pytest.mark.parametrize(
    ("error", "policy", "remedy"),
    [
        ("it does not end: giving up", "default", ["quieter, or with --policy must-finish"]),
        ("it does not end: giving up", "must-finish", ["quieter"]),
        ("the destination died", "default", []),
    ],
)
def test_a_migration_that_was_given_up_says_what_to_do(error: str, policy: str, remedy: list[str]):
    one: dict[str, Any] = {
        "id": "m1",
        "guest": "u",
        "guest_name": "web",
        "source": "a",
        "destination": "b",
        "policy": policy,
        "requested_by": "",
        "evacuation": "",
        "state": "failed",
        "error": error,
        "ended_at": "2026-11-22T23:37:44+00:00",
        "duration_seconds": None,
        "findings": [],
        "decisions": [],
    }
    lines = show.migration_lines(one)
    assert [line for line in lines if "what to do" in line] == [
        f"    what to do: try again when the guest is {each}" for each in remedy
    ]


def _moved(**more: Any) -> str:
    """Return the lines of a migration that has completed."""
    one: dict[str, Any] = {
        "id": "m1",
        "guest": "u",
        "guest_name": "web",
        "source": "a",
        "destination": "b",
        "policy": "default",
        "requested_by": "",
        "evacuation": "",
        "state": "completed",
        "error": None,
        "ended_at": "2026-11-22",
        "duration_seconds": 2.0,
        "downtime_seconds": 0.1,
        "downtime_uncertainty_seconds": 0.0,
        "max_downtime_seconds": 0.3,
        "ceiling_exceeded": False,
        "downtime_limit_seconds": None,
        "mode": "precopy",
        "transferred_bytes": 5 << 20,
        "network_state": "none",
        "findings": [],
        "decisions": [],
    }
    return "\n".join(show.migration_lines(one | more))


def test_a_migration_tells_of_its_disks_and_of_its_encryption():
    assert "5.0 MiB sent" in _moved()
    assert "encrypted" not in _moved()
    assert "5.0 MiB and 24.0 MiB of disks sent, encrypted" in _moved(disk_bytes=24 << 20, tls=True)


@pytest.mark.parametrize(
    ("use", "words"), [("save", "web from a into /srv/web.state"), ("load", "web from /srv/web.state to b")]
)
def test_a_guest_that_is_saved_or_loaded_is_shown_with_its_file(use: str, words: str):
    assert words in _moved(file="/srv/web.state", file_use=use)


def test_a_relative_name_of_a_file_is_refused_in_words():
    with pytest.raises(ValidationError) as refused:
        Save.model_validate({"guest": "web", "file": "web.state"})
    assert (
        describe(refused.value.errors()) == "file: must be the absolute path of a file: /srv/saved/NAME.state"
    )


@given(
    words=st.lists(st.text(alphabet="ab日-/", min_size=1, max_size=15), min_size=1),
    width=st.integers(40, 100),
)
def test_a_line_of_prose_breaks_between_words_and_keeps_all_of_them(words: list[str], width: int):
    lines = tables.hanging("    " + " ".join(words), width)
    assert [word for line in lines for word in line.split()] == words
    assert max(map(cell_len, lines)) <= width


def test_a_long_line_goes_on_below_its_begin():
    assert tables.hanging("mail would stay: libvirt manages it, and cannot be asked", 40) == [
        "mail would stay: libvirt manages it, and",
        "    cannot be asked",
    ]
    assert tables.hanging("short", 40) == ["short"]
