"""The main jobs on the page with nothing but a keyboard, and what a screen reader is told meanwhile."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from migrator.api.commands import Evacuate
from migrator.core.model import State
from tests.page_browser import ShownPage
from tests.service_thread import ServiceThread

_FOCUSED = """() => {
  const one = document.activeElement;
  return one.ariaLabel || (one.labels && one.labels.length ? one.labels[0].textContent : one.textContent).trim();
}"""


def tab_to(seen: ShownPage, name: str) -> None:
    """Press Tab until what is called so, or begins so with an ellipsis, has the focus."""
    before = []
    for _ in range(150):
        seen.page.keyboard.press("Tab")
        focused = str(seen.page.evaluate(_FOCUSED))
        if focused == name or (name.endswith("…") and focused.startswith(name[:-1])):
            return
        before.append(focused)
    raise AssertionError(f"no Tab leads to {name}: {before}")


def press(seen: ShownPage, name: str, key: str = "Enter") -> None:
    """Go to what is called so, and press it."""
    tab_to(seen, name)
    seen.page.keyboard.press(key)


def opened(seen: ShownPage, words: str) -> None:
    """Wait for a dialog that says so; it has the focus."""
    expect(seen.page.get_by_role("dialog")).to_contain_text(words)
    assert seen.page.evaluate("document.activeElement.closest('dialog') !== null")


def test_a_host_is_emptied_and_filled_again(operator: ShownPage, service: ServiceThread):
    page = operator.page
    service.move_slowly()
    page.keyboard.press("2")
    expect(page.get_by_role("heading", name="Hosts")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("alpha")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="alpha", exact=True)).to_be_visible()
    press(operator, "Evacuate… alpha")
    opened(operator, "would leave in about")
    press(operator, "Evacuate alpha")
    expect(page.get_by_role("dialog")).to_have_count(0)
    # Whoever opened it is where he was.
    assert page.evaluate(_FOCUSED) == "Evacuate… alpha"
    press(operator, "Cancel Evacuation of alpha")
    opened(operator, "Guests that moved stay moved")
    press(operator, "Cancel the evacuation")
    expect(page.get_by_role("log")).to_contain_text("evacuation of alpha cancelled")
    service.let_move()
    emptied = service.ask(Evacuate(host="alpha"))
    service.until(lambda running: running.engine.registry.evacuations[emptied.id].ended, "an empty host")
    press(operator, "Restore alpha")
    opened(operator, "come home")
    press(operator, "Restore alpha")
    expect(page.get_by_role("log")).to_contain_text("restore of alpha completed")


def test_hosts_are_rolled_through_and_a_held_guest_is_answered_for(
    operator: ShownPage, service: ServiceThread
):
    page = operator.page
    begun = service.held("db")
    service.move_slowly()
    expect(page.get_by_role("log")).to_contain_text("db is held: a person must look")
    press(operator, "It is lost")
    opened(operator, "This will be done")
    press(operator, "Do it")
    service.reaches(begun.id, State.FAILED)
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("4")
    expect(page.get_by_role("heading", name="Evacuations, windows and rolls")).to_be_visible()
    press(operator, "Roll through hosts…")
    opened(operator, "Hosts, in the order in which you choose them")
    press(operator, "beta…", " ")
    press(operator, "Begin with beta")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("article").filter(has_text="Roll of beta")).to_be_visible()
    press(operator, "Cancel Roll of beta")
    opened(operator, "No other host is begun")
    press(operator, "Cancel the roll")
    expect(page.get_by_role("list").filter(has_text=re.compile("Roll of beta.*cancelled"))).to_be_visible()
