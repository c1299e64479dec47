"""The page, in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api
from playwright.sync_api import expect

from migrator.api.documents import ForecastDocument
from migrator.core.model import State
from tests.conftest import missing
from tests.http_service import OPERATOR, VIEWER
from tests.service_fakes import InThread, ScriptedService, in_thread

_PHONE = {"width": 360, "height": 740}
_DESK = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("there is no chromium here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InThread]:
    with in_thread(tmp_path, lambda: ScriptedService(steps=None)) as service:
        yield service


class Seen:
    """A page, and what its browser complained of."""

    def __init__(self, browser: Any, url: str, *, size: dict[str, int] = _DESK, **more: Any) -> None:
        self.context = browser.new_context(viewport=size, **more)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.set_default_timeout(10_000)
        self.page.goto(url)

    def _heard(self, message: Any) -> None:
        # The browser itself tells of every answer that is an error; those are asked for here.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def sign_in(self, token: str) -> None:
        self.page.get_by_label("Token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()


@pytest.fixture
def operator(browser: Any, service: InThread) -> Iterator[Seen]:
    seen = Seen(browser, service.place.url)
    seen.sign_in(OPERATOR)
    expect(seen.page.get_by_text("live", exact=True)).to_be_visible()
    yield seen
    assert seen.complaints == []
    assert all(url.startswith((service.place.url, "data:")) for url in seen.requests)
    seen.context.close()


def card(seen: Seen, name: str) -> Any:
    return seen.page.get_by_role("article").filter(
        has=seen.page.get_by_role("heading", name=name, exact=True)
    )


def test_nothing_is_shown_without_a_token(browser: Any, service: InThread):
    seen = Seen(browser, service.place.url)
    expect(seen.page.get_by_role("dialog")).to_be_visible()
    assert "alpha" not in seen.page.content()
    seen.sign_in("wrong")
    expect(seen.page.get_by_text("the token is unknown")).to_be_visible()
    seen.sign_in(OPERATOR)
    expect(card(seen, "alpha")).to_be_visible()
    assert seen.page.evaluate("document.cookie") == ""
    seen.page.get_by_role("button", name="Sign out").click()
    expect(seen.page.get_by_role("dialog")).to_be_visible()
    expect(card(seen, "alpha")).to_have_count(0)
    assert seen.complaints == []
    seen.context.close()


def test_a_migration_live(operator: Seen, service: InThread):
    expect(operator.page.get_by_text("No guest is moving.")).to_be_visible()
    service.do(lambda world: world.migrate(world.guests()[1]))
    moving = card(operator, "db")
    expect(moving).to_contain_text("preparing")
    for ratio in (0.1, 0.2, 0.3):
        service.do(lambda world, ratio=ratio: world.progress("m1", ratio))  # type: ignore[misc]
    expect(moving).to_contain_text("30 %")
    expect(moving).to_contain_text("bandwidth 100.0 MiB/s")
    expect(moving).to_contain_text("begin, the stream has 100 MiB/s, the guest dirties 1 MiB/s")
    chart = moving.get_by_role("img")
    expect(chart.locator("path.left")).to_have_count(1)
    expect(chart.locator("line.mark")).to_have_count(1)
    assert "remaining" in chart.get_attribute("aria-label")
    service.do(lambda world: world.finish("m1"))
    expect(moving).to_have_count(0)
    row = operator.page.get_by_role("row").filter(has_text="db")
    expect(row).to_contain_text("completed")
    expect(row).to_contain_text("42 ms (300 ms)")


def test_a_page_that_is_opened_late_shows_the_whole_curve(operator: Seen, service: InThread):
    service.do(lambda world: world.migrate(world.guests()[1]))
    for ratio in (0.1, 0.2, 0.3, 0.4, 0.5):
        service.do(lambda world, ratio=ratio: world.progress("m1", ratio))  # type: ignore[misc]
    operator.requests.clear()
    operator.page.reload()
    curve = card(operator, "db").locator("path.left")
    expect(curve).to_have_attribute("d", re.compile(r"M.*(L.*){4}"))
    # What comes afterwards is added to it.
    service.do(lambda world: world.progress("m1", 0.6))
    expect(curve).to_have_attribute("d", re.compile(r"M.*(L.*){5}"))
    # Asked for once: what follows is told.
    assert sum(url.endswith("/m1/samples") for url in operator.requests) == 1


def test_the_curve_of_what_has_ended(operator: Seen, service: InThread):
    service.do(lambda world: world.migrate(world.guests()[1]))
    for ratio in (0.1, 0.5, 0.9):
        service.do(lambda world, ratio=ratio: world.progress("m1", ratio))  # type: ignore[misc]
    service.do(lambda world: world.finish("m1"))
    page = operator.page
    for _ in range(2):
        page.get_by_role("button", name="Curve of db").focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_role("heading")).to_have_text("db, alpha to beta")
        expect(dialog).to_contain_text("stood still 42 ms (ceiling 300 ms)")
        expect(dialog.locator("path.left")).to_have_attribute("d", re.compile(r"M.*L.*L.*"))
        expect(dialog.get_by_role("listitem")).to_have_count(1)
        assert "1 decisions, listed below" in dialog.get_by_role("img").get_attribute("aria-label")
        page.get_by_role("button", name="Close").click()
        expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="Curve of db")).to_be_focused()


def test_the_curve_of_what_no_figures_were_kept_of(operator: Seen, service: InThread):
    service.do(lambda world: world.migrate(world.guests()[1]))
    service.do(lambda world: world.finish("m1", State.FAILED))
    operator.page.get_by_role("button", name="Curve of db").click()
    expect(operator.page.get_by_role("dialog")).to_contain_text("No figures were kept of it.")


def test_a_verdict_is_said_in_words(operator: Seen, service: InThread):
    service.do(lambda world: world.migrate(world.guests()[1]))
    for forecast, said in (
        (ForecastDocument(verdict="cannot"), "its policy does not let it end"),
        (ForecastDocument(verdict="converges-if", rung="start-postcopy"), "it takes postcopy to end"),
    ):
        service.do(lambda world, forecast=forecast: world.progress("m1", 0.5, forecast=forecast))  # type: ignore[misc]
        expect(card(operator, "db")).to_contain_text(said)
    expect(card(operator, "db")).not_to_contain_text("converges")


@pytest.mark.parametrize(
    ("longest", "said"),
    [(9.0, "3.0 s to go (1.0 s to 9.0 s)"), (None, "3.0 s to go (at least 1.0 s, it may take much longer)")],
)
def test_a_forecast_that_nothing_bounds_is_said_in_words(
    operator: Seen, service: InThread, longest: float | None, said: str
):
    service.do(lambda world: world.migrate(world.guests()[1]))
    forecast = ForecastDocument(verdict="converges", p10_seconds=1.0, p50_seconds=3.0, p90_seconds=longest)
    service.do(lambda world: world.progress("m1", 0.5, forecast=forecast))
    expect(card(operator, "db")).to_contain_text(said)


def test_names_are_only_ever_text(operator: Seen, service: InThread):
    service.do(lambda world: world.migrate(world.guests()[0]))
    expect(operator.page.get_by_role("heading", name="<img src=x onerror=alert(1)>")).to_be_visible()
    service.do(lambda world: world.decide("m1", "<b>odd</b>", "<script>alert(2)</script>"))
    expect(operator.page.get_by_role("list").get_by_text("<script>alert(2)</script>")).to_be_visible()
    card(operator, "alpha").get_by_text("3 guests").click()
    expect(card(operator, "alpha").get_by_role("listitem")).to_have_count(3)
    assert operator.page.locator("img, b:has-text('odd'), main script").count() == 0


def test_evacuate_and_cancel_with_the_keyboard(operator: Seen, service: InThread):
    page = operator.page
    page.get_by_role("button", name="Evacuate alpha").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Evacuate alpha?")
    page.get_by_label("Deadline").fill("90")
    page.keyboard.press("Enter")
    evacuation = card(operator, "evacuation of alpha")
    expect(evacuation).to_contain_text("3 of 3 guests left")
    expect(evacuation).to_contain_text("deadline")
    expect(card(operator, "alpha")).to_contain_text("draining")
    assert service.do(lambda world: world.carried_out[0][1].user) == "olga"
    service.do(lambda world: world.finish("m1"))
    expect(evacuation).to_contain_text("2 of 3 guests left")
    page.get_by_role("button", name="Cancel migration of db").click()
    page.get_by_role("button", name="Cancel the migration").click()
    expect(page.get_by_role("row").filter(has_text="db")).to_contain_text("cancelled")
    page.get_by_role("button", name="Cancel evacuation of alpha").click()
    page.get_by_role("button", name="Cancel the evacuation").click()
    expect(evacuation).to_have_count(0)
    expect(
        page.get_by_role("listitem").filter(has_text="evacuation of alpha, 2 guests left")
    ).to_contain_text("cancelled")


def test_cancel_is_offered_only_while_it_is_possible(operator: Seen, service: InThread):
    service.do(lambda world: world.migrate(world.guests()[1]))
    button = operator.page.get_by_role("button", name="Cancel migration of db")
    expect(button).to_be_visible()
    service.do(lambda world: world.enter("m1", State.FINISHING))
    expect(card(operator, "db")).to_contain_text("finishing")
    expect(button).to_have_count(0)


def test_a_ceiling_that_was_exceeded_is_red(operator: Seen, service: InThread):
    page = operator.page
    for number, downtime in ((1, 0.2), (2, 4.0)):
        service.do(lambda world, n=number: world.migrate(world.guests()[n]))  # type: ignore[misc]
        service.do(lambda world, n=number, s=downtime: world.finish(f"m{n}", downtime_seconds=s))  # type: ignore[misc]
    kept, above = (
        page.get_by_role("row").filter(has_text=text) for text in ("(300 ms)", "(300 ms, exceeded)")
    )
    expect(kept.locator(".good")).to_have_text("completed")
    expect(above.locator(".state.bad")).to_have_text("completed")
    expect(above.locator("td.bad")).to_contain_text("4")
    above.get_by_role("button").click()
    expect(page.get_by_role("dialog")).to_contain_text("stood still for longer than its policy allows")


def test_a_held_one_takes_a_word_and_says_first_what_it_will_do(operator: Seen, service: InThread):
    page = operator.page
    service.do(lambda world: world.migrate(world.guests()[1]))
    words = page.get_by_role("group", name="Where is the guest db?")
    expect(card(operator, "db")).to_be_visible()
    expect(words).to_have_count(0)
    service.do(lambda world: world.finish("m1", State.HELD))
    words.get_by_role("button", name="It is at alpha").click()
    expect(page.get_by_role("dialog")).to_contain_text("the guest is at the destination")
    page.get_by_role("button", name="Understood").click()
    words.get_by_role("button", name="It is at beta").click()
    expect(page.get_by_role("dialog")).to_contain_text("let the guest run at the destination")
    page.get_by_role("button", name="Back").click()
    assert service.do(lambda world: [each.state for each in world.active_migrations()]) == [State.HELD]
    words.get_by_role("button", name="It is at beta").click()
    page.get_by_role("button", name="Do it").click()
    expect(page.get_by_role("row").filter(has_text="db")).to_contain_text("completed")


def test_a_refusal_is_said_and_the_dialog_stays(operator: Seen, service: InThread):
    service.do(lambda world: world.carry_out.__self__._hosts.pop("beta"))  # type: ignore[attr-defined]
    operator.page.get_by_role("button", name="Evacuate beta").click()
    operator.page.get_by_role("button", name="Evacuate beta").last.click()
    expect(operator.page.get_by_role("dialog")).to_contain_text("there is no host beta")


def test_the_focus_stays_while_things_move(operator: Seen, service: InThread):
    service.do(lambda world: world.migrate(world.guests()[1]))
    button = operator.page.get_by_role("button", name="Cancel migration of db")
    button.focus()
    for ratio in (0.1, 0.2, 0.3):
        service.do(lambda world, ratio=ratio: world.progress("m1", ratio))  # type: ignore[misc]
    service.do(lambda world: world.migrate(world.guests()[2]))
    expect(card(operator, "db")).to_contain_text("30 %")
    expect(button).to_be_focused()
    said = operator.page.get_by_role("log")
    expect(said).to_contain_text("db is precopy")


def test_a_viewer_has_no_buttons_that_change_anything(browser: Any, service: InThread):
    service.do(lambda world: world.migrate(world.guests()[1]))
    seen = Seen(browser, service.place.url)
    seen.sign_in(VIEWER)
    expect(card(seen, "db")).to_be_visible()
    expect(card(seen, "alpha")).to_be_visible()
    assert [button.inner_text() for button in seen.page.get_by_role("button").all()] == ["Sign out"]
    assert seen.complaints == []
    seen.context.close()


def test_it_comes_back_with_the_service(operator: Seen, service: InThread):
    service.do(lambda world: world.migrate(world.guests()[1]))
    expect(card(operator, "db")).to_be_visible()
    service.stop()
    expect(operator.page.get_by_role("status")).to_contain_text("connection lost")
    service.world.finish("m1", State.HELD)
    service.start()
    expect(card(operator, "db")).to_contain_text("A person must look")
    expect(operator.page.get_by_role("status")).to_have_text("live")
    # A browser says so of every connection that is refused.
    operator.complaints[:] = [text for text in operator.complaints if "ERR_" not in text]


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.matrix), "dark"])
def test_on_a_phone(browser: Any, service: InThread, scheme: str):
    service.do(lambda world: world._evacuate(world._host("alpha"), None, user="tests"))
    service.do(lambda world: world.progress("m1", 0.4))
    service.do(lambda world: world.finish(world.migrate(world.guests()[2]).id, State.FAILED))
    seen = Seen(browser, service.place.url, size=_PHONE, color_scheme=scheme, has_touch=True, is_mobile=True)
    seen.sign_in(OPERATOR)
    expect(card(seen, "evacuation of alpha")).to_be_visible()
    page = seen.page
    history = page.locator(".scroll")
    assert history.evaluate("region => region.scrollWidth <= region.clientWidth")
    ended = history.get_by_role("row").filter(has_text="it was made to be failed").get_by_role("cell")
    expect(ended).to_have_count(6)
    for cell in ended.all():
        box = cell.bounding_box()
        assert box is not None
        assert box["width"] > 0.8 * _PHONE["width"]
        assert box["x"] + box["width"] <= _PHONE["width"]
    assert ended.last.evaluate("cell => getComputedStyle(cell, '::before').content").startswith('"Ended')
    assert page.evaluate("document.documentElement.scrollWidth") <= _PHONE["width"]
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is None or box["height"] >= 40
    assert page.evaluate(_CONTRAST) >= 4.5
    assert seen.complaints == []
    seen.context.close()


#: The least contrast of any text to the card it is on, as WCAG reckons it.
_CONTRAST = """() => {
  const light = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number).map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  let least = 21;
  for (const element of document.querySelectorAll("h1, h2, h3, p, span, li, button, th, td, summary")) {
    if (!element.textContent.trim() || !element.offsetParent) continue;
    let behind = element, back = "";
    for (; behind; behind = behind.parentElement) {
      back = getComputedStyle(behind).backgroundColor;
      if (back && !back.endsWith(", 0)") && back !== "transparent") break;
    }
    const [a, b] = [light(getComputedStyle(element).color), light(back)].sort((x, y) => y - x);
    least = Math.min(least, (a + 0.05) / (b + 0.05));
  }
  return least;
}"""
