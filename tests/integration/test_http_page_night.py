"""The page when something is wrong: with the site, with the connection, with the clock, with whoever is signed in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from playwright.sync_api import expect

from migrator.api.commands import Migrate
from migrator.api.events import HostStateChanged
from migrator.api.saved_documents import LoadableDocument, SavedGuestDocument, SavedGuestsDocument
from migrator.core.hooks import Hook, HookPlace, HookResult, RollPoint
from migrator.core.model import State
from migrator.testing.simulated_service import RunningEngine
from tests.page_browser import PHONE, Seen
from tests.service_thread import ServiceThread


def held(service: ServiceThread, guest: str = "db") -> Any:
    """Have a guest held whose source has died while it was copied."""
    service.move_slowly(guest)
    begun = service.ask(Migrate(guest=guest, to="beta"))
    service.reaches(begun.id, State.PRECOPY)
    service.kill_source(guest)
    return service.reaches(begun.id, State.HELD)


def sent(seen: Seen, path: str) -> list[dict[str, Any]]:
    """Return the bodies that the page sends there from now on; nothing of it reaches the service."""
    found: list[dict[str, Any]] = []

    def keep(route: Any) -> None:
        found.append(json.loads(route.request.post_data))
        route.fulfill(
            status=409,
            content_type="application/problem+json",
            body=json.dumps({"detail": "not in this test", "code": "conflict"}),
        )

    seen.page.route(f"**/api/v1/{path}", keep)
    return found


def test_a_held_guest_names_the_button_that_will_be_followed(operator: Seen, service: ServiceThread):
    one = held(service)
    assert one.held_until == "a person's word that the guest is lost"
    need = operator.need("db is held")
    expect(need).to_contain_text("Look at both QEMUs, on alpha and on beta.")
    expect(need).to_contain_text("press “It is lost”")
    assert "--guest-at" not in operator.page.locator("main").inner_text()
    need.get_by_role("button", name="It is at alpha").click()
    dialog = operator.page.get_by_role("dialog")
    # Refused, with the button that is not; nothing was done.
    expect(dialog).to_contain_text("Press instead: “It is lost”.")
    expect(dialog.get_by_role("button")).to_have_count(1)
    dialog.get_by_role("button", name="Back").click()
    need.get_by_role("button", name="It is lost").click()
    expect(dialog).to_contain_text("start it from its disks")
    dialog.get_by_role("button", name="Do it").click()
    ended = service.reaches(one.id, State.FAILED)
    assert "lost" in (ended.error or "")
    expect(operator.page.locator(".need")).to_have_count(0)


def test_a_host_that_is_off_for_good_can_be_said_so(operator: Seen, service: ServiceThread):
    held(service)
    answers = sent(operator, "migrations/*/resolve")
    operator.need("db is held").get_by_role("button", name="It is at beta").click()
    expect(operator.page.get_by_role("dialog")).to_contain_text("Not in this test.")
    with operator.page.expect_response("**/resolve"):
        operator.page.get_by_role("checkbox", name=re.compile("switched off for good")).check()
    assert [each.get("unreachable_is_off", False) for each in answers] == [False, True]
    assert all(each["dry_run"] for each in answers)


def test_a_dialog_that_follows_another_at_once_stays(operator: Seen):
    operator.go("#/hosts")
    operator.button("Cordon alpha").click()
    dialog = operator.page.get_by_role("dialog")
    expect(dialog).to_contain_text("Cordon alpha")
    # The browser tells that the first was closed a moment after it was: a person may have opened the next by then.
    operator.page.evaluate(
        """() => {
          const button = (name) => [...document.querySelectorAll("button")].find((one) => one.textContent === name);
          const dialog = document.querySelector("dialog");
          dialog.addEventListener("close", () => setTimeout(() => { dialog.dataset.told = ""; }));
          const closes = new MutationObserver(() => {
            if (dialog.open) return;
            closes.disconnect();
            button("Evacuate…").click();
          });
          closes.observe(dialog, {attributes: true, attributeFilter: ["open"]});
          button("Back").click();
        }"""
    )
    expect(operator.page.locator("dialog[data-told]")).to_have_count(1)
    expect(dialog).to_contain_text("Evacuate alpha")
    operator.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_who_signs_out_in_one_tab_is_signed_out_in_the_other(operator: Seen, service: ServiceThread):
    operator.go("#/hosts/alpha")
    expect(operator.page.get_by_role("heading", name="alpha", exact=True)).to_be_visible()
    other = operator.context.new_page()
    other.goto(operator.url)
    other.get_by_role("button", name="Sign out").click()
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(operator.page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert "alpha" not in operator.page.locator("main").inner_text()
    # Back again, one is where one was.
    operator.sign_in()
    expect(operator.page.get_by_role("heading", name="alpha", exact=True)).to_be_visible()


def test_a_token_that_is_revoked_shows_nothing_any_more(operator: Seen, service: ServiceThread):
    operator.go("#/guests")
    expect(operator.row("mail")).to_have_count(1)
    service.tokens.revoked.add("olga")
    expect(operator.page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert "mail" not in operator.page.locator("body").inner_text()


def test_a_clock_that_is_off_is_said_and_not_believed(browser: Any, service: ServiceThread):
    moved = service.reaches(service.ask(Migrate(guest="db", to="beta")).id, State.COMPLETED)
    seen = Seen(browser, service.place.url)
    seen.page.add_init_script("const real = Date.now.bind(Date); Date.now = () => real() + 3600000;")
    seen.page.reload()
    seen.sign_in()
    expect(
        seen.page.get_by_text(
            "This device's clock is 60 min ahead of the service's. Times here are by the service's."
        )
    ).to_be_visible()
    seen.go(f"#/migrations/{moved.id}")
    expect(seen.page.get_by_text(re.compile(r"\d\d:\d\d:\d\d, \d+(\.\d)? s ago"))).to_be_visible()
    seen.close()


def test_a_slow_network_asks_once_and_says_that_it_asks(browser: Any, service: ServiceThread):
    seen = Seen(browser, service.place.url)

    waiting: list[Any] = []
    slow = True

    def keep(route: Any) -> None:
        if slow:
            waiting.append(route)
        else:
            route.continue_()

    seen.page.route("**/api/v1/hosts", keep)
    seen.sign_in()
    expect(seen.page.get_by_text("Asking the service…")).to_be_visible()
    slow = False
    for route in waiting:
        route.continue_()
    seen.live()
    seen.go("#/hosts/alpha")
    commands = sent(seen, "hosts/alpha/cordon")
    seen.button("Cordon alpha").click()
    seen.page.get_by_role("dialog").get_by_role("button", name="Cordon alpha").dblclick()
    expect(seen.page.get_by_role("dialog")).to_contain_text("not in this test")
    assert len(commands) == 1
    seen.close()


_EVENTS = 10_000


@pytest.mark.matrix
def test_ten_thousand_events_are_kept_out_of_the_way(operator: Seen, service: ServiceThread):
    operator.go("#/events")
    expect(operator.page.get_by_role("heading", name="Events")).to_be_visible()

    async def publish(running: RunningEngine) -> None:
        host = running.queries.host("alpha")
        for n in range(500):
            running.bus.publish(HostStateChanged(host=host.model_copy(update={"guests": n + 1})))

    for _ in range(_EVENTS // 500):
        service.do(publish)
    # Where the stream could not keep up it begins anew, and what is shown is what is.
    operator.live()
    assert operator.page.locator(".events li").count() <= 200
    operator.go("#/hosts")
    expect(operator.row("alpha")).to_be_visible()
    operator.complaints[:] = [text for text in operator.complaints if "ERR_" not in text]


class _TwoHooks:
    """Two hooks that patch, none that is asked whether the host is ready."""

    def for_roll(self, point: RollPoint) -> Sequence[Hook]:
        names = ["patch", "firmware"] if point is RollPoint.AFTER_DRAIN else []
        return [
            Hook(name=name, point=point, command=["/it"], place=HookPlace.HOST, timeout_seconds=1800.0)
            for name in names
        ]

    async def run(self, hook: Hook, host: str, document: Mapping[str, Any]) -> HookResult:
        return HookResult(status=0)


def test_the_hooks_of_a_roll_are_chosen(operator: Seen, service: ServiceThread):
    service.stop()
    service.service.roll_hooks = _TwoHooks()
    service.start()
    operator.live()
    operator.go("#/evacuations")
    operator.button("Roll through hosts…").click()
    dialog = operator.page.get_by_role("dialog")
    expect(dialog).to_contain_text(
        "None is configured ([[hooks]]). It is filled again as soon as it answers."
    )
    expect(dialog.get_by_role("checkbox", name="patch on the host, 30 min at most")).to_be_checked()
    dialog.get_by_role("checkbox", name="firmware on the host, 30 min at most").uncheck()
    dialog.get_by_role("checkbox", name=re.compile("^beta")).check()
    rolls = sent(operator, "rolls")
    dialog.get_by_role("button", name="Begin with beta").click()
    expect(dialog).to_contain_text("not in this test")
    assert rolls[0]["hooks"] == {"after-drain": ["patch"], "ready": []}
    operator.complaints[:] = [text for text in operator.complaints if "ERR_" not in text]


def test_without_hooks_a_roll_does_not_say_that_any_is_run(operator: Seen, service: ServiceThread):
    operator.go("#/evacuations")
    operator.button("Roll through hosts…").click()
    dialog = operator.page.get_by_role("dialog")
    expect(dialog).to_contain_text("Each host is emptied, waited for, and filled again.")
    expect(dialog).to_contain_text("It is handed over to nobody")


def test_policies_are_listed_and_explained_where_one_is_chosen(operator: Seen, service: ServiceThread):
    page = operator.page
    operator.go("#/policies")
    gentle = page.get_by_role("article").filter(has=page.get_by_role("heading", name="gentle"))
    expect(gentle).to_contain_text("The guest stands still for 100 ms at most.")
    expect(page.get_by_role("article").filter(has_text="built in5 guests")).to_have_count(1)
    assert operator.accessibility() == []
    operator.go("#/guests?search=db")
    operator.button("Move… db").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Where it writes too fast it is slowed down, by 50% at most.")
    dialog.get_by_label("Policy").select_option("gentle")
    expect(dialog).to_contain_text("It is never slowed down.")
    dialog.get_by_role("button", name="Move db").click()
    service.until(lambda running: service.service.site.running("db") == ["beta"], "db on beta")
    (moved,) = service.do(lambda running: running.queries.migrations(limit=5))
    assert moved.policy == "gentle"


#: One that can be loaded, one whose file is gone.
_SAVED = SavedGuestsDocument(
    items=[
        SavedGuestDocument(
            migration="m1",
            guest="u-1",
            guest_name="dora",
            host="alpha",
            file="/srv/saved/dora.state",
            state="saved",
            size_bytes=1 << 30,
            qemu_version="10.0.2",
            hosts=[
                LoadableDocument(host="alpha", loadable=False, reason="a disk is not there"),
                LoadableDocument(host="beta", loadable=True),
            ],
        ),
        SavedGuestDocument(
            migration="m2",
            guest="u-2",
            guest_name="emil",
            host="beta",
            file="/srv/saved/emil.state",
            state="missing",
            reason="there is no such file on beta",
        ),
    ]
)


def test_saved_guests_are_listed_and_loaded_where_they_can_be(operator: Seen, service: ServiceThread):
    page = operator.page
    page.route(
        "**/api/v1/saved",
        lambda route: route.fulfill(content_type="application/json", body=_SAVED.model_dump_json()),
    )
    operator.go("#/saved")
    expect(operator.row("emil")).to_contain_text("There is no such file on beta.")
    expect(operator.button("Load… emil")).to_have_attribute("title", "Not now: see its state")
    # Where there is no pointer to rest on it, pressing it says why.
    operator.button("Load… emil").press("Enter")
    expect(operator.row("emil").get_by_role("status")).to_have_text("see its state")
    assert operator.accessibility() == []
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    operator.button("Load… dora").click()
    loads = sent(operator, "loads")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("On", exact=True).locator("option")).to_have_text(["beta"])
    dialog.get_by_role("button", name="Load dora on beta").click()
    expect(dialog).to_contain_text("not in this test")
    assert loads == [{"file": "/srv/saved/dora.state", "to": "beta", "accept": []}]


def test_a_guest_is_saved_from_its_own_view(operator: Seen, service: ServiceThread):
    operator.go("#/guests?search=db")
    operator.page.get_by_role("link", name="db", exact=True).click()
    saves = sent(operator, "saves")
    operator.button("Save… db").click()
    dialog = operator.page.get_by_role("dialog")
    dialog.get_by_label("File on alpha, with its whole path").fill("/srv/saved/db.state")
    dialog.get_by_role("button", name="Stop and save db").click()
    expect(dialog).to_contain_text("not in this test")
    assert saves == [{"guest": service.guest("db").uuid, "file": "/srv/saved/db.state", "accept": []}]


def _attention(seen: Seen, **store: Any) -> list[dict[str, Any]]:
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


def test_a_rack_that_is_off_is_one_thing_to_look_at(operator: Seen):
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
                "error": "5 guests left: …",
                "guests": [_LEFT(f"g{n}", "it was not begun") for n in range(4)] + [_LEFT("g9", "no room")],
            },
            [{"host": "a", "up": True, "state": "draining", "guests": 5}],
            "Evacuation of a ended with 5 guests left",
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
    operator: Seen,
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
