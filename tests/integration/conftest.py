"""The page in a browser, with a service of its own; a module that has another service says so itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.page_browser import ShownPage, chromium
from tests.service_thread import ServiceThread, in_thread


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceThread]:
    with in_thread(tmp_path) as service:
        yield service


@pytest.fixture
def operator(browser: Any, service: ServiceThread) -> Iterator[ShownPage]:
    seen = ShownPage(browser, service.place.url)
    seen.sign_in()
    seen.live()
    yield seen
    seen.close()
