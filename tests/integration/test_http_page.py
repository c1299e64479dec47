"""The page in a real browser, before a simulated site that the real engine drives."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import expect

from migrator.api.commands import Evacuate, Migrate
from migrator.api.events import MigrationStateChanged
from migrator.core.model import State
from migrator.testing.simulated_service import RunningEngine
from tests.http_service import OPERATOR, VIEWER
from tests.page_browser import PHONE, ShownPage
from tests.service_thread import ServiceThread

CHANGES = re.compile("^(Evacuate|Cancel|Move|Cordon|Roll|Activate|Restore|Resolve|Postcopy)")


def test_nothing_is_shown_without_a_token(browser: Any, service: ServiceThread):
    seen = ShownPage(browser, service.place.url, "#/hosts/alpha")
    expect(seen.page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert "alpha" not in seen.page.locator("main").inner_text()
    seen.sign_in("wrong")
    expect(seen.page.get_by_text("the token is unknown")).to_be_visible()
    seen.page.get_by_label("Token").fill(OPERATOR)
    seen.button("Sign in").click()
    # The address that one came with is where one is.
    expect(seen.page.get_by_role("heading", name="alpha", exact=True)).to_be_visible()
    assert seen.page.evaluate("document.cookie") == ""
    seen.button("Sign out").click()
    expect(seen.page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert "alpha" not in seen.page.locator("main").inner_text()
    seen.close()


def test_all_is_well_until_something_needs_a_person(operator: ShownPage, service: ServiceThread):
    expect(operator.page.get_by_role("heading", name="All is well")).to_be_visible()
    begun = service.moving_slowly()
    expect(operator.page.get_by_text("1 guest is moving, as they should.")).to_be_visible()
    service.kill_source("db")
    service.reaches(begun.id, State.HELD)
    held = operator.need("db is held")
    expect(held).to_contain_text("press “It is lost”")
    expect(operator.page.get_by_label("1 need a person")).to_be_visible()
    assert operator.page.title().startswith("(1)")
    held.get_by_role("button", name="It is lost").click()
    dialog = operator.page.get_by_role("dialog")
    # What will be done is said before it is done; here it is refused, and why.
    expect(dialog).to_contain_text(re.compile("db: (it is lost|refused|not now)"))
    operator.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_a_host_that_was_emptied_shows_what_its_libvirt_has_shut_off(
    operator: ShownPage, service: ServiceThread
):
    service.do(lambda running: setattr(service.service.site.hosts["alpha"], "shut_off_guests", 2))
    service.do(lambda running: running.queries.refresh())
    kept = "2 guests that libvirt has shut off stay on alpha: virsh list --inactive names them."
    operator.go("#/hosts/alpha")
    expect(operator.page.get_by_text(kept)).to_be_visible()
    begun = service.ask(Evacuate(host="alpha"))
    operator.go(f"#/evacuations/{begun.id}")
    expect(operator.page.locator("h1 + .state")).to_have_text("completed")
    expect(operator.page.get_by_text(kept)).to_be_visible()
    operator.go("#/evacuations")
    expect(operator.page.locator(".past").get_by_text("2 more shut off")).to_be_visible()


def test_who_comes_home_and_what_may_be_done_to_them_is_said_before_a_restore(
    operator: ShownPage, service: ServiceThread
):
    begun = service.ask(Evacuate(host="alpha", policy="offline"))
    operator.go(f"#/evacuations/{begun.id}")
    expect(operator.page.locator("h1 + .state")).to_have_text("completed")
    operator.go("#/hosts/alpha")
    operator.button(re.compile("^Restore")).click()
    dialog = operator.page.get_by_role("dialog")
    expect(dialog).to_contain_text("come home, and it takes guests again.")
    expect(dialog).to_contain_text("by the policy offline, which allows:")
    expect(dialog).to_contain_text(
        "The guest is stopped first and stands still until all of it has been copied."
    )
    dialog.get_by_label("Policy").select_option("gentle")
    expect(dialog).to_contain_text("by the policy gentle, which allows:")
    dialog.get_by_role("button", name="Restore alpha").click()
    expect(dialog).to_have_count(0)
    service.until(lambda running: running.queries.host("alpha").guests == 3, "its guests are home")


def test_a_host_that_cannot_be_reached_is_said_at_the_top(operator: ShownPage, service: ServiceThread):
    service.do(lambda running: setattr(service.service.site.hosts["beta"], "down", True))
    service.do(lambda running: running.queries.refresh())
    need = operator.need("beta cannot be reached")
    expect(need).to_contain_text("2 guests were there")
    need.get_by_role("link", name="See the host").click()
    expect(operator.page.get_by_role("heading", name="beta", exact=True)).to_be_visible()
    expect(operator.page.get_by_text("unreachable")).to_be_visible()
    expect(operator.button("Evacuate… beta")).to_have_attribute("title", "Not now: it cannot be reached")


def test_a_migration_live(operator: ShownPage, service: ServiceThread):
    page = operator.page
    begun = service.moving_slowly()
    page.get_by_role("list", name="Migrations").get_by_role("link", name="db").click()
    expect(page.get_by_role("heading", name="db")).to_be_visible()
    chart = page.locator(".curve svg")
    expect(chart.locator("path.left")).to_have_attribute("d", re.compile(r"M.*L.*L"))
    assert chart.bounding_box()["width"] > 600
    # Its axes say how much and when.
    expect(chart).to_contain_text("MiB")
    expect(chart).to_contain_text(re.compile(r"\d s"))
    expect(page.locator(".gauge")).to_contain_text("ceiling 300 ms")
    expect(operator.button("Resolve")).to_have_attribute("aria-disabled", "true")
    expect(page.get_by_text("it is not held")).to_be_visible()
    service.let_move()
    ended = service.reaches(begun.id, State.COMPLETED)
    expect(page.locator("h1 + .state")).to_have_text("completed")
    mark = chart.get_by_role("button", name=re.compile("Decision 1,"))
    mark.focus()
    sentence = ended.decisions[0].reason
    expect(page.locator(".said")).to_contain_text(sentence[1:])
    expect(page.locator(".decisions li")).to_have_count(len(ended.decisions))
    expect(page.locator(".end", has_text="Destination")).to_contain_text("the guest runs here")


def test_a_page_that_is_opened_late_shows_the_whole_curve(browser: Any, service: ServiceThread):
    begun = service.moving_slowly()

    async def several(running: RunningEngine) -> bool:
        return len(await running.queries.samples(begun.id)) > 4

    service.until(several, "some samples")
    seen = ShownPage(browser, service.place.url, f"#/migrations/{begun.id}")
    seen.sign_in()
    expect(seen.page.locator("path.left")).to_have_attribute("d", re.compile(r"M.*(L.*){3}"))
    # Asked for once: what follows is told.
    assert sum(url.endswith(f"/{begun.id}/samples") for url in seen.requests) == 1
    seen.close()


def test_an_evacuation_is_planned_in_a_picture_then_shown_as_a_timeline(
    operator: ShownPage, service: ServiceThread
):
    page = operator.page
    service.move_slowly("db")
    operator.go("#/hosts")
    operator.button("Evacuate… beta").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("1 guest stays: mail")
    dialog.get_by_role("button", name="Back").click()
    operator.button("Evacuate… alpha").click()
    expect(dialog).to_contain_text("3 guests would leave in about")
    expect(dialog.get_by_role("list", name="Plan").get_by_role("listitem")).to_have_count(3)
    dialog.get_by_label("Deadline, minutes from now").fill("90")
    dialog.get_by_role("button", name="Evacuate alpha").click()
    expect(dialog).to_have_count(0)
    operator.go("#/")
    page.get_by_role("link", name="Evacuation of alpha").click()
    line = page.get_by_role("list", name="Guests")
    expect(line.get_by_role("listitem").filter(has_text="db")).to_contain_text("copies")
    expect(line.get_by_role("listitem").filter(has_text="web")).to_contain_text("arrived")
    expect(page.locator(".axis .now")).to_have_text("now")
    expect(page.get_by_text("; deadline")).to_be_visible()
    service.let_move()
    expect(page.locator("h1 + .state")).to_have_text("completed")
    expect(line.locator(".bar.arrived")).to_have_count(3)
    expect(page.get_by_text("Use of the links")).to_be_visible()
    expect(operator.button(re.compile("^Cancel"))).to_have_attribute("title", "Not now: it has ended")


def test_an_evacuation_is_planned_into_a_window_and_cancelled(operator: ShownPage, service: ServiceThread):
    page = operator.page
    operator.go("#/hosts/alpha")
    operator.button("Evacuate… alpha").click()
    page.get_by_label("Begin", exact=True).select_option("window")
    night = datetime.now() + timedelta(days=2)  # noqa: DTZ005 - the browser's own zone, which is this machine's
    page.get_by_label("Window begins").fill(f"{night:%Y-%m-%d}T02:30")
    page.get_by_label("Window ends").fill(f"{night:%Y-%m-%d}T05:00")
    operator.button("Plan the evacuation of alpha").click()
    operator.go("#/evacuations")
    planned = page.get_by_role("article").filter(has_text="Evacuation of alpha")
    expect(planned).to_contain_text(f"begins {night.day} {night:%b}, 02:30")
    planned.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the evacuation").click()
    expect(planned).to_have_count(0)
    expect(page.get_by_role("list").get_by_text("cancelled")).to_be_visible()


def test_hosts_are_rolled_through_in_the_order_in_which_they_were_chosen(
    operator: ShownPage, service: ServiceThread
):
    service.move_slowly()
    operator.go("#/evacuations")
    operator.button("Roll through hosts…").click()
    dialog = operator.page.get_by_role("dialog")
    for name in ("beta", "alpha"):
        dialog.get_by_role("checkbox", name=re.compile(f"^{name}")).check()
    dialog.get_by_role("button", name="Begin with beta").click()
    begun = service.until(lambda running: running.queries.active_evacuations(), "the roll")
    roll = next(each for each in begun if each.kind == "roll")
    assert [each.host for each in roll.hosts] == ["beta", "alpha"]
    expect(operator.page.get_by_role("article").filter(has_text="Roll of beta, alpha")).to_contain_text(
        "0 of 2 hosts done"
    )


def test_guests_are_searched_filtered_and_moved(operator: ShownPage, service: ServiceThread):
    page = operator.page
    operator.go("#/guests")
    expect(page.locator("tbody tr")).to_have_count(5)
    page.keyboard.press("/")
    page.keyboard.type("beta")
    expect(page.locator("tbody tr")).to_have_count(2)
    assert "search=beta" in page.url
    operator.button(re.compile("cannot move")).click()
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(operator.row("mail")).to_contain_text("Cannot move: Libvirt manages it.")
    operator.go("#/guests?search=db")
    operator.button("Move… db").click()
    page.get_by_label("To", exact=True).select_option("beta")
    expect(page.get_by_role("dialog")).to_contain_text("It can move to beta")
    operator.button("Move db").click()
    service.until(lambda running: service.service.site.running("db") == ["beta"], "db on beta")
    page.get_by_role("link", name="db").click()
    expect(page.get_by_role("heading", name="db")).to_be_visible()
    expect(operator.row("completed")).to_contain_text("alpha")


def test_the_keyboard_leads_everywhere(operator: ShownPage, service: ServiceThread):
    page = operator.page
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("search in what is shown")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    expect(page.get_by_role("heading", name="Hosts")).to_be_visible()
    for key in ("j", "j", "k", "j"):
        page.keyboard.press(key)
    expect(page.get_by_role("link", name="beta", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="beta", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Hosts")).to_be_visible()


def test_the_focus_stays_while_things_move(operator: ShownPage, service: ServiceThread):
    begun = service.moving_slowly()
    operator.go(f"#/migrations/{begun.id}")
    button = operator.button("Cancel migration of db")
    button.focus()
    before = operator.page.locator("path.left").get_attribute("d")
    expect(operator.page.locator("path.left")).not_to_have_attribute("d", before or "")
    expect(button).to_be_focused()
    expect(operator.page.get_by_role("log")).to_contain_text("db copies")
    page = operator.page
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Cancel the migration").click()
    expect(page.locator("h1 + .state")).to_have_text("cancelled")


def test_a_ceiling_that_was_exceeded_is_red(operator: ShownPage, service: ServiceThread):
    page = operator.page
    moved = service.reaches(service.ask(Migrate(guest="db", to="beta")).id, State.COMPLETED)
    operator.go(f"#/migrations/{moved.id}")

    def stood(seconds: float) -> None:
        told = moved.model_copy(update={"downtime_seconds": seconds, "standstill_seconds": seconds})
        service.do(lambda running: running.bus.publish(MigrationStateChanged(migration=told)))

    stood(0.04)  # a busy machine may have taken longer
    expect(page.locator(".gauge .fill.good")).to_be_attached()
    stood(4.0)
    expect(page.locator(".gauge .fill.bad")).to_be_attached()
    expect(page.get_by_text("It stood still for longer than its policy allows.")).to_be_visible()
    assert page.locator("h1 + .state.good, .gauge .good").count() == 0
    operator.go("#/")
    expect(operator.row("db").locator("td.bad")).to_contain_text("4.0 s (300 ms, exceeded)")


def test_names_are_only_ever_text(operator: ShownPage, service: ServiceThread):
    page = operator.page
    operator.go("#/guests?host=alpha")
    expect(page.get_by_role("link", name="<img src=x onerror=alert(1)>")).to_be_visible()
    assert page.locator("img").count() == 0
    page.get_by_role("link", name="<img src=x onerror=alert(1)>").click()
    expect(page.get_by_role("heading", name="<img src=x onerror=alert(1)>")).to_be_visible()
    assert page.locator("img").count() == 0


def test_a_viewer_has_no_buttons_that_change_anything(browser: Any, service: ServiceThread):
    begun = service.moving_slowly()
    seen = ShownPage(browser, service.place.url)
    seen.sign_in(VIEWER)
    expect(seen.page.get_by_role("list", name="Migrations").get_by_role("link", name="db")).to_be_visible()
    for view in ("#/", "#/hosts", "#/hosts/alpha", f"#/migrations/{begun.id}", "#/evacuations"):
        seen.go(view)
        expect(seen.page.locator("main h1")).to_have_count(1)
        changing = seen.page.locator("main").get_by_role("button", name=CHANGES)
        assert changing.count() == 0, view
    seen.close()


def test_events_are_live_and_filtered(operator: ShownPage, service: ServiceThread):
    begun = service.ask(Migrate(guest="db", to="beta"))
    service.reaches(begun.id, State.COMPLETED)
    operator.go("#/events?kind=migration")
    lines = operator.page.get_by_role("list", name=re.compile("^Events")).get_by_role("listitem")
    expect(lines.filter(has_text="completed")).to_have_count(1)
    begun = service.ask(Migrate(guest="db", to="alpha"))
    service.reaches(begun.id, State.COMPLETED)
    expect(lines.filter(has_text="completed")).to_have_count(2)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.matrix)])
def test_everybody_can_read_it_also_on_a_phone(browser: Any, service: ServiceThread, scheme: str):
    service.ask(Migrate(guest="db", to="beta"))
    service.move_slowly("web")
    evacuation = service.ask(Evacuate(host="alpha"))
    moved = service.until(lambda running: running.queries.active_migrations(), "a migration")[0]
    seen = ShownPage(
        browser, service.place.url, size=PHONE, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    seen.sign_in()
    seen.live()
    views = (
        "#/",
        "#/hosts",
        "#/hosts/alpha",
        "#/guests",
        f"#/evacuations/{evacuation.id}",
        f"#/migrations/{moved.id}",
        "#/events",
    )
    for view in views:
        seen.go(view)
        expect(seen.page.locator("main h1")).to_have_count(1)
        for width in (800, PHONE["width"]):
            seen.page.set_viewport_size({"width": width, "height": 800})
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= width, (view, width)
        assert seen.accessibility() == [], view
    seen.close()


def test_every_module_is_served_and_nothing_else(service: ServiceThread, browser: Any):
    seen = ShownPage(browser, service.place.url)
    expect(seen.page.get_by_role("heading", name="Sign in")).to_be_visible()
    policy = seen.page.request.get(service.place.url).headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    scripts = [url for url in seen.requests if "/page/" in url]
    assert all(re.search(r"/page/[0-9a-f]{16}/[a-z_/]+\.(js|css)$", url) for url in scripts)
    version = scripts[0].rsplit("/", 1)[0]
    for name in ("vendor/LICENSE.htm", "../access.py", "%2e%2e/access.py", "index.html"):
        assert seen.page.request.get(f"{version}/{name}").status == 404
    seen.close()
