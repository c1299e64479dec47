"""Draws docs/images/page-*.png anew: the page as it is while hosts of a simulated site are emptied.

python -m bench.page_pictures [DIRECTORY]
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import async_playwright

from bench.page_site import TOKEN, TwoHooks, served, site_of
from migrator.api.commands import Evacuate, Migrate
from migrator.core.model import State
from migrator.testing.simulated_service import RunningEngine
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.workload import MIB, steady

OUTPUT = Path(__file__).parent.parent / "docs" / "images"
_DESK, _PHONE = {"width": 1180, "height": 760}, {"width": 400, "height": 860}


class _Page:
    """The page in one window."""

    def __init__(self, page: Any, url: str, directory: Path) -> None:
        self.page, self._url, self._directory = page, url, directory

    async def open(self, view: str, wanted: str) -> None:
        await self.page.goto(f"{self._url}/{view}")
        await self.page.wait_for_selector(f"#token, {wanted}")
        if await self.page.locator("#token").count():
            await self.page.fill("#token", TOKEN)
            await self.page.keyboard.press("Enter")
        await self.page.wait_for_selector(wanted)

    async def take(self, name: str) -> None:
        await self.page.wait_for_timeout(400)
        await self.page.screenshot(path=self._directory / f"page-{name}.png")
        print(f"page-{name}.png", flush=True)


@asynccontextmanager
async def _window(
    browser: Any, url: str, directory: Path, *, size: dict[str, int], scheme: str
) -> AsyncIterator[_Page]:
    context = await browser.new_context(viewport=size, color_scheme=scheme)
    page = await context.new_page()
    page.set_default_timeout(60_000)
    await page.goto(url)
    await page.wait_for_selector("#token")
    shown = _Page(page, url, directory)
    await shown.open("", "main h2")
    yield shown
    await context.close()


async def _troubles(running: RunningEngine, site: SimulatedSite) -> None:
    """Have a guest held, another that does not come to an end, and a host that cannot be reached."""
    # With room for what they write.
    writer, lost = (
        next(each for each in site.machines.values() if each.host == host and each.memory_bytes >= 1024 * MIB)
        for host in ("host-3", "host-4")
    )
    writer.workload = steady(400 * MIB, 390 * MIB)
    lost.workload = steady(200 * MIB, 60 * MIB)
    begun = await running.ask(Migrate(guest=lost.uuid, to="host-5"))
    await running.ask(Migrate(guest=writer.uuid, to="host-6", policy="gentle"))

    async def state() -> State:
        return (await running.queries.migration(begun.id)).state  # type: ignore[no-any-return] # see its class

    while await state() is not State.PRECOPY:
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)
    next(end for end in site.streams[lost.socket].listeners if not end.is_destination).die()
    site.hosts["host-8"].down = True
    await running.queries.refresh("host-8")
    while await state() is not State.HELD:
        await asyncio.sleep(0.1)


async def draw(directory: Path) -> None:
    """Take all pictures."""
    program = shutil.which("chromium")
    if program is None:
        sys.exit("there is no chromium here")
    site = site_of(hosts=8, guests=120, link=200 * MIB)
    with tempfile.TemporaryDirectory() as records:
        async with (
            served(site, Path(records), hooks=TwoHooks()) as (running, url),
            async_playwright() as playwright,
        ):
            browser = await playwright.chromium.launch(executable_path=program)
            async with _window(browser, url, directory, size=_DESK, scheme="dark") as dark:
                await dark.take("well")
                await dark.open("#/hosts", "tbody tr")
                await dark.page.get_by_role("button", name="Evacuate… host-1", exact=True).click()
                await dark.page.get_by_label("Deadline, minutes from now").fill("3")
                await dark.page.wait_for_selector("dialog .guests .guest")
                await dark.take("plan")
                await dark.page.get_by_role("button", name="Evacuate host-1", exact=True).click()
                await dark.page.wait_for_selector("dialog:not([open])", state="attached")
                evacuation = running.queries.active_evacuations()[0]
                await dark.open("#/evacuations", "article")
                await dark.page.get_by_role("button", name="Roll through hosts…").click()
                for host in ("host-3", "host-4"):
                    await dark.page.get_by_role("checkbox", name=f"{host} ").check()
                await dark.page.wait_for_selector("dialog fieldset + fieldset .check")
                await dark.take("roll")
                await dark.page.get_by_role("button", name="Back").click()
                await dark.open(f"#/evacuations/{evacuation.id}", ".guest .bar.copies")
                while (await running.queries.evacuation(evacuation.id)).guests_left > len(
                    evacuation.guests
                ) * 0.7:
                    await asyncio.sleep(0.1)
                await dark.take("evacuation")
                await running.end_of(evacuation)
                moved = max(
                    (
                        each
                        for each in await running.queries.migrations(limit=50)
                        if not each.ceiling_exceeded
                    ),
                    key=lambda each: len(each.decisions),
                )
                await _troubles(running, site)
                await running.ask(Evacuate(host="host-2"))
                await dark.open("#/", ".need")
                await dark.take("now")
                async with _window(browser, url, directory, size=_PHONE, scheme="dark") as phone:
                    await phone.open("#/", ".need")
                    await phone.take("phone")
            async with _window(browser, url, directory, size=_DESK, scheme="light") as light:
                await light.open(f"#/migrations/{moved.id}", ".decision")
                await light.page.locator(".decision").first.focus()
                await light.take("migration")
                await light.open("#/guests?sort=-memory_bytes", "tbody tr:nth-child(20)")
                await light.take("guests")
                await light.open("#/policies", "article")
                await light.take("policies")
            await browser.close()


if __name__ == "__main__":
    asyncio.run(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT))
