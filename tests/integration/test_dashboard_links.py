"""Links of the dashboards open the view of the page that they say, of what the row of a table names."""

from __future__ import annotations

import re
from urllib.parse import quote

from playwright.sync_api import expect

from dashboards.build import texts
from migrator.api.commands import Evacuate
from migrator.core.model import State
from tests.page_browser import ShownPage
from tests.service_thread import ServiceThread

_LINKS = sorted(
    {url for text in texts().values() for url in re.findall(r'"url": "(\$\{page\}/#/[^"]*)"', text)}
)
#: What Grafana leaves as it is where no format is named: a whole address.
_ADDRESS = "-_.!~*'();/?:@&=+$,#"


def followed(url: str, page: str, values: dict[str, str]) -> str:
    """Return the address that Grafana opens: variables, and fields of a table's row, in the format that they name."""

    def value(match: re.Match[str]) -> str:
        name, _, form = match[1].partition(":")
        found = page if name == "page" else values[name.removeprefix("__data.fields.")]
        return quote(found, safe="" if form == "percentencode" else _ADDRESS)

    return re.sub(r"\$\{([^}]+)\}", value, url)


def test_each_opens_the_view_of_what_its_row_names(operator: ShownPage, service: ServiceThread):
    service.move_slowly("db")
    evacuation = service.ask(Evacuate(host="alpha"))
    moving = service.until(
        lambda running: next(
            (one for one in running.queries.active_migrations() if one.guest_name == "db"), None
        ),
        "its migration",
    )
    service.reaches(moving.id, State.PRECOPY)
    # What has no uuid is known by its host and its name.
    row = {"guest": "alpha/db", "host": "alpha", "migration": moving.id, "evacuation": evacuation.id}
    titles = {"guest": "db", "host": "alpha", "migration": "db", "evacuation": "Evacuation of alpha"}
    opened = set()
    for url in _LINKS:
        fields = re.findall(r"__data\.fields\.(\w+)", url)
        operator.page.goto("about:blank")
        operator.page.goto(followed(url, service.place.url, row))
        title = titles[fields[0]] if fields else re.compile(".")
        expect(operator.page.locator("main h1")).to_have_text(title)
        expect(operator.page.get_by_text("There is no")).to_have_count(0)
        opened |= set(fields)
    assert opened == set(titles)


def test_a_guest_whose_key_has_signs_of_addresses_is_found(operator: ShownPage, service: ServiceThread):
    asked: list[str] = []
    operator.page.on("request", lambda request: asked.append(request.url))
    key = "alpha/a b?c#d%41"
    link = next(url for url in _LINKS if "/guests/" in url)
    operator.page.goto(followed(link, service.place.url, {"guest": key}))
    expect(operator.page.get_by_text(f"There is no guest '{key}'")).to_be_visible()
    assert any(url.endswith("/guests/" + quote(key, safe="")) for url in asked)
