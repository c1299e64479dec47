"""The page in a real Chromium: what a test sees of it, and what the browser complains of."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright import sync_api
from playwright.sync_api import expect

from tests.conftest import missing
from tests.http_service import OPERATOR

PHONE = {"width": 400, "height": 800}
DESK = {"width": 1280, "height": 900}
#: For a machine that does much else meanwhile.
_LIMIT_MILLISECONDS = 20_000
_AXE = Path(__file__).parent.parent / ".build" / "axe" / "axe.min.js"


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Run a browser while the block lasts."""
    program = shutil.which("chromium")
    if program is None:
        missing("there is no chromium here")
    expect.set_options(timeout=_LIMIT_MILLISECONDS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


class ShownPage:
    """The page in a window of its own, and what its browser complained of."""

    def __init__(
        self, browser: Any, url: str, view: str = "", *, size: dict[str, int] = DESK, **more: Any
    ) -> None:
        self.url = url
        self.context = browser.new_context(viewport=size, reduced_motion="reduce", **more)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.set_default_timeout(_LIMIT_MILLISECONDS)
        self.page.goto(f"{url}/{view}")

    def _heard(self, message: Any) -> None:
        # The browser itself tells of every answer that is an error; those are asked for here.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def sign_in(self, token: str = OPERATOR) -> None:
        """Trade a token for a session, and wait until all is there."""
        self.page.get_by_label("Token").fill(token)
        self.page.keyboard.press("Enter")

    def live(self) -> None:
        """Wait until what is shown is fresh."""
        expect(self.page.get_by_role("status").filter(has_text="Live")).to_be_visible()

    def go(self, view: str) -> None:
        """Open another view, as one does who was sent its address."""
        self.page.goto(f"{self.url}/{view}")

    def button(self, name: str | re.Pattern[str]) -> Any:
        """Return the button of that name."""
        return self.page.get_by_role("button", name=name, exact=isinstance(name, str))

    def need(self, text: str) -> Any:
        """Return what needs a person and says so."""
        return self.page.locator(".need").filter(has_text=text)

    def row(self, text: str) -> Any:
        """Return the row of a table."""
        return self.page.get_by_role("row").filter(has_text=text)

    def sent(self, path: str) -> list[dict[str, Any]]:
        """Return the bodies that the page sends there from now on; nothing of it reaches the service."""
        found: list[dict[str, Any]] = []

        def keep(route: Any) -> None:
            found.append(json.loads(route.request.post_data))
            route.fulfill(
                status=409,
                content_type="application/problem+json",
                body=json.dumps({"detail": "not in this test", "code": "conflict"}),
            )

        self.page.route(f"**/api/v1/{path}", keep)
        return found

    def close(self) -> None:
        """Close its window.

        :raise AssertionError: the browser complained, or something was asked for elsewhere.
        """
        assert self.complaints == []
        assert all(url.startswith((self.url, "data:")) for url in self.requests)
        self.context.close()

    def accessibility(self) -> list[str]:
        """Return what axe-core finds against WCAG 2.1 A and AA in what is shown now, one line each."""
        if not _AXE.exists():
            missing("axe-core is not there: scripts/setup test loads it from npm")
        # The page's own policy lets nothing in: it is brought by the browser's debugger, once for a document.
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(_AXE.read_text())
        found = self.page.evaluate(
            """() => axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})"""
        )
        return [
            f"{each['id']}: {each['help']}: {node['html'][:160]} {node['failureSummary'][:300]}"
            for each in found["violations"]
            for node in each["nodes"]
        ]
