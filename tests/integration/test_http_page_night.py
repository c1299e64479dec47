"""The page when something is wrong: with the site, with the connection, with the clock, with whoever is signed in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from playwright.sync_api import expect

from migrator.core.hooks import Hook, HookPlace, HookResult, RollPoint
from migrator.core.model import State
from tests.page_browser import ShownPage
from tests.service_thread import ServiceThread


def test_a_held_guest_names_the_button_that_will_be_followed(operator: ShownPage, service: ServiceThread):
    one = service.held()
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


def test_a_held_guest_is_nowhere_shown_as_moving(operator: ShownPage, service: ServiceThread):
    service.held()
    row = operator.row("db")
    operator.go("#/guests?search=db")
    expect(row).to_contain_text("held: a person must look")
    expect(row).not_to_contain_text("moving")
    expect(operator.button("Move… db")).to_have_attribute("title", "Not now: it is held: a person must look")
    expect(operator.button(re.compile("^in a migration"))).to_be_visible()
    row.get_by_role("link", name="db", exact=True).click()
    expect(operator.page.get_by_text("It is held: a person must look.")).to_be_visible()
    expect(operator.page.get_by_role("list", name="Under way")).to_contain_text("a person must look: ")
    operator.go("#/hosts/alpha")
    expect(operator.page.get_by_role("list", name="Migrations from or to it")).to_contain_text("held")


def test_who_is_signed_in_is_said_once(operator: ShownPage):
    base = operator.page.evaluate("document.querySelector('script[type=module]').src").rpartition("/")[0]
    said = operator.page.evaluate(
        """async (base) => {
          const {who} = await import(`${base}/store.js`);
          return [who({user: "operator", role: "operator"}), who({user: "olga", role: "viewer", hosts: ["a", "b"]})];
        }""",
        base,
    )
    assert said == ["operator", "olga, viewer of a, b"]
    expect(operator.page.locator("header .who")).to_have_text("olga, operator")


def test_a_host_that_is_off_for_good_can_be_said_so(operator: ShownPage, service: ServiceThread):
    service.held()
    answers = operator.sent("migrations/*/resolve")
    operator.need("db is held").get_by_role("button", name="It is at beta").click()
    expect(operator.page.get_by_role("dialog")).to_contain_text("Not in this test.")
    with operator.page.expect_response("**/resolve"):
        operator.page.get_by_role("checkbox", name=re.compile("switched off for good")).check()
    assert [each.get("unreachable_is_off", False) for each in answers] == [False, True]
    assert all(each["dry_run"] for each in answers)


def test_a_dialog_that_follows_another_at_once_stays(operator: ShownPage):
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


def test_the_hooks_of_a_roll_are_chosen(operator: ShownPage, service: ServiceThread):
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
    rolls = operator.sent("rolls")
    dialog.get_by_role("button", name="Begin with beta").click()
    expect(dialog).to_contain_text("not in this test")
    assert rolls[0]["hooks"] == {"after-drain": ["patch"], "ready": []}
    operator.complaints[:] = [text for text in operator.complaints if "ERR_" not in text]


def test_without_hooks_a_roll_does_not_say_that_any_is_run(operator: ShownPage, service: ServiceThread):
    operator.go("#/evacuations")
    operator.button("Roll through hosts…").click()
    dialog = operator.page.get_by_role("dialog")
    expect(dialog).to_contain_text("Each host is emptied, waited for, and filled again.")
    expect(dialog).to_contain_text("It is handed over to nobody")


def test_policies_are_listed_and_explained_where_one_is_chosen(operator: ShownPage, service: ServiceThread):
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
