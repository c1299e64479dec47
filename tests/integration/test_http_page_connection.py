"""The page and its connection: lost, slow or cut, its session ended, and a clock that is off."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import expect

from migrator.api.commands import Migrate
from migrator.api.events import HostStateChanged
from migrator.core.model import State
from migrator.testing.simulated_service import RunningEngine
from tests.page_browser import ShownPage
from tests.service_thread import ServiceThread


def test_it_comes_back_with_the_service(operator: ShownPage, service: ServiceThread):
    begun = service.moving_slowly()
    page = operator.page
    expect(page.get_by_role("list", name="Migrations").get_by_role("link", name="db")).to_be_visible()
    service.stop()
    expect(page.get_by_role("status").first).to_contain_text("Stale: as of")
    expect(page.get_by_role("alert")).to_contain_text("What is shown is as of")
    service.start()
    operator.live()
    service.let_move()
    service.reaches(begun.id, State.COMPLETED)
    expect(operator.row("db")).to_contain_text("completed")
    # A browser says so of every connection that is refused.
    operator.complaints[:] = [text for text in operator.complaints if "ERR_" not in text]


def test_who_signs_out_in_one_tab_is_signed_out_in_the_other(operator: ShownPage, service: ServiceThread):
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


def test_a_token_that_is_revoked_shows_nothing_any_more(operator: ShownPage, service: ServiceThread):
    operator.go("#/guests")
    expect(operator.row("mail")).to_have_count(1)
    service.tokens.revoked.add("olga")
    expect(operator.page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert "mail" not in operator.page.locator("body").inner_text()


def test_a_session_says_before_it_ends(browser: Any, service: ServiceThread):
    seen = ShownPage(browser, service.place.url)

    def soon(route: Any) -> None:
        answer = route.fetch()
        ends_at = datetime.now(UTC) + timedelta(minutes=5)
        route.fulfill(response=answer, json={**answer.json(), "ends_at": ends_at.isoformat()})

    seen.page.route("**/api/v1/session", soon)
    seen.sign_in()
    expect(seen.page.get_by_text(re.compile("This session ends in (5 min|4 min 5. s)"))).to_be_visible()
    seen.page.unroute("**/api/v1/session")
    seen.button("Sign in again").click()
    expect(seen.page.get_by_role("heading", name="Sign in")).to_be_visible()
    seen.close()


def test_a_clock_that_is_off_is_said_and_not_believed(browser: Any, service: ServiceThread):
    moved = service.reaches(service.ask(Migrate(guest="db", to="beta")).id, State.COMPLETED)
    seen = ShownPage(browser, service.place.url)
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
    seen = ShownPage(browser, service.place.url)

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
    commands = seen.sent("hosts/alpha/cordon")
    seen.button("Cordon alpha").click()
    seen.page.get_by_role("dialog").get_by_role("button", name="Cordon alpha").dblclick()
    expect(seen.page.get_by_role("dialog")).to_contain_text("not in this test")
    assert len(commands) == 1
    seen.close()


def test_a_slow_line_is_waited_for_and_one_that_carries_nothing_is_said(
    operator: ShownPage, service: ServiceThread
):
    line = operator.context.new_cdp_session(operator.page)

    def carries(*, offline: bool = False, latency: float = 0, bytes_per_second: float = -1) -> None:
        given = {"downloadThroughput": bytes_per_second, "uploadThroughput": bytes_per_second}
        line.send("Network.emulateNetworkConditions", {"offline": offline, "latency": latency, **given})

    line.send("Network.enable")
    carries(latency=400, bytes_per_second=50_000)
    operator.page.reload()
    operator.live()
    operator.go("#/guests?search=mail")
    expect(operator.row("mail")).to_be_visible()
    carries(offline=True)
    expect(operator.page.get_by_role("alert")).to_contain_text("What is shown is as of")
    expect(operator.page.get_by_role("status").first).to_contain_text("Stale: as of")
    # What is shown stays.
    expect(operator.row("mail")).to_be_visible()
    carries()
    operator.live()
    operator.complaints[:] = [text for text in operator.complaints if "ERR_" not in text]


_EVENTS = 10_000


@pytest.mark.matrix
def test_ten_thousand_events_are_kept_out_of_the_way(operator: ShownPage, service: ServiceThread):
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
