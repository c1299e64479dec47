"""What needs a person, of whatever the page's store may have: what is said of it, and which buttons there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.page_browser import ShownPage


def _attention(seen: ShownPage, **store: Any) -> list[dict[str, Any]]:
    """Return what the page would say needs a person, of a store with this and nothing else."""
    base = seen.page.evaluate("document.querySelector('script[type=module]').src").rpartition("/")[0]
    found: list[dict[str, Any]] = seen.page.evaluate(
        """async ([base, given]) => {
          const {attention} = await import(`${base}/attention.js`);
          const map = (name, key) => new Map((given[name] || []).map((each) => [each[key], each]));
          const store = {service: null, duplicates: [], pastEvacuations: given.past || [], hosts: map("hosts", "host"),
            migrations: map("migrations", "id"), evacuations: map("evacuations", "id")};
          return attention(store, Date.parse("2026-01-01T00:00:00Z"))
            .map(({title, what, todo, buttons}) => ({title, what, todo, buttons: buttons.map((each) => each.label)}));
        }""",
        [base, store],
    )
    return found


def test_a_rack_that_is_off_is_one_thing_to_look_at(operator: ShownPage):
    hosts = [{"host": f"h{n:02}", "up": False, "error": "no route", "guests": 3} for n in range(20)]
    (one,) = _attention(operator, hosts=hosts)
    assert one["title"] == "20 hosts cannot be reached"
    assert "h00, h01" in one["what"]
    assert one["what"].endswith("and 8 more.")


_LEFT: Callable[[str, str], dict[str, str]] = lambda guest, reason: {  # noqa: E731 - a row of a table
    "guest": guest,
    "standing": "waiting",
    "reason": reason,
}


@pytest.mark.parametrize(
    ("past", "hosts", "title", "says", "buttons"),
    [
        pytest.param(
            {
                "id": "e",
                "kind": "evacuate",
                "host": "a",
                "state": "stopped",
                "ended_at": "2025-12-31T23:00:00Z",
                "guests_left": 5,
                "error": "5 guests still on a: …",
                "guests": [_LEFT(f"g{n}", "it was not begun") for n in range(4)] + [_LEFT("g9", "no room")],
            },
            [{"host": "a", "up": True, "state": "draining", "guests": 5}],
            "Evacuation of a ended with 5 guests still on a",
            "g9: no room; g0, g1, g2 and 1 more: it was not begun.",
            ["Evacuate a", "Restore a", "Activate a"],
            id="evacuation",
        ),
        pytest.param(
            {
                "id": "r",
                "kind": "roll",
                "host": "",
                "state": "incomplete",
                "ended_at": "2025-12-31T23:00:00Z",
                "guests_left": 0,
                "guests": [],
                "hosts": [
                    {"host": "a", "stage": "failed", "reason": "a hook says no"},
                    {"host": "b", "stage": "left", "reason": "it was not begun"},
                ],
            },
            [{"host": "a", "up": True, "state": "maintenance", "guests": 0}],
            "The roll stopped at a",
            "A hook says no.",
            ["Restore a", "Activate a", "Roll through the rest…"],
            id="roll",
        ),
    ],
)
def test_what_ended_with_something_left_says_why_and_what_can_be_done(
    operator: ShownPage,
    past: dict[str, Any],
    hosts: list[dict[str, Any]],
    title: str,
    says: str,
    buttons: list[str],
):
    (one,) = _attention(operator, past=[past], hosts=hosts)
    assert (one["title"], one["buttons"]) == (title, buttons)
    assert says in one["what"]
    # Once the host is in use again nobody has to look any more.
    assert _attention(operator, past=[past], hosts=[{**hosts[0], "state": "active"}]) == []


#: Whatever can need a person, as the page's store has it: the id of each, and a word of what is said of it.
_TROUBLED = {
    "service": {
        "role": "acting",
        "acting": "one",
        "complaints": ["the journal cannot be written: disk full"],
        "broker_connected": False,
    },
    "hosts": [
        {"host": "a", "up": False, "error": "no route to host", "guests": 3},
        {"host": "b", "up": True, "guests_duplicate": ["u-1"], "guests_undriven": 1, "guests_unmonitored": 2},
        {
            "host": "c",
            "up": True,
            "guests_duplicate": ["u-1"],
            "certificates_expire_at": "2026-01-09T00:00:00Z",
        },
    ],
    "migrations": [
        {
            "id": "m1",
            "guest": "g1",
            "state": "held",
            "error": "neither runs",
            "source": "a",
            "destination": "b",
        },
        {"id": "m2", "guest": "g2", "state": "recovering", "source": "a", "destination": "b"},
        {
            "id": "m3",
            "guest": "g3",
            "state": "precopy",
            "source": "a",
            "destination": "b",
            "policy": "gentle",
            "forecast": {"verdict": "cannot"},
            "can_cancel": True,
            "can_postcopy": True,
        },
    ],
    "evacuations": [
        {"id": "e1", "host": "a", "state": "running", "late": True, "guests_left": 2, "guests": []},
        {
            "id": "e2",
            "host": "b",
            "state": "running",
            "at_risk": True,
            "guests_left": 1,
            "guests": [{"guest": "g4", "standing": "set-aside", "reason": "failed three times"}],
        },
        {"id": "e3", "host": "c", "state": "scheduled", "window_fit": "does-not-fit", "guests": []},
        {
            "id": "e4",
            "kind": "roll",
            "host": "",
            "state": "running",
            "guests": [],
            "hosts": [{"host": "d", "stage": "failed", "reason": "a hook says no"}],
        },
    ],
}
_NEEDED = [
    "a cannot be reached",
    "The broker is away",
    "The journal is away",
    "The roll stopped at d",
    "b: 1 guest in a migration that nobody drives",
    "Evacuation of a is late",
    "Evacuation of b: 1 guest cannot move",
    "g1 is held",
    "g2: its postcopy stream is broken",
    "u-1 runs twice",
    "b: 2 guests without a monitor",
    "c: its certificate expires in",
    "Evacuation of b: the deadline is at risk",
    "Evacuation of c: its window will not do",
    "g3 is stuck",
]


def test_whatever_needs_a_person_is_at_the_top_with_what_to_do(operator: ShownPage):
    base = operator.page.evaluate("document.querySelector('script[type=module]').src").rpartition("/")[0]
    found = operator.page.evaluate(
        """async ([base, given]) => {
          const {attention} = await import(`${base}/attention.js`);
          const map = (items, key) => new Map(items.map((each) => [each[key], each]));
          return attention({...given, duplicates: [], pastEvacuations: [], hosts: map(given.hosts, "host"),
            migrations: map(given.migrations, "id"), evacuations: map(given.evacuations, "id")},
            Date.parse("2026-01-01T00:00:00Z"))
            .map(({title, level, todo, buttons}) => [title, level, todo, buttons.length]);
        }""",
        [base, _TROUBLED],
    )
    titles = sorted(title for title, *_ in found)
    assert all(title.startswith(wanted) for title, wanted in zip(titles, sorted(_NEEDED), strict=True)), (
        titles
    )
    # The worst first; each says what to do; a held one has its three answers.
    assert [level for _, level, *_ in found] == ["bad"] * 10 + ["warn"] * 5
    assert all(todo for *_, todo, _ in found)
    assert {title: buttons for title, _, _, buttons in found if buttons}["g1 is held"] == 3
