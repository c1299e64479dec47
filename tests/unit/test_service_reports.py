"""What a controller says of itself and of those that it shares the journal with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from migrator import logs
from migrator.api.service_documents import ServiceDocument
from migrator.ports import Lease
from migrator.ports.controllers import ControllerInfo
from migrator.service import differences
from migrator.service.reports import Reporter
from migrator.store.journal import SqlJournal
from migrator.store.presence import Heartbeat
from tests.journals import run_sql


@dataclass
class One:
    """One of the controllers; the journal is shared with the other."""

    journal: SqlJournal
    heartbeat: Heartbeat
    seconds: float
    site: Lease | None = None

    async def act(self) -> None:
        name = self.heartbeat.info.name
        self.site = await self.journal.leases.acquire("site", owner=name, seconds=self.seconds)
        assert self.site is not None
        self.heartbeat.describe(role="acting")

    def configure(self, *hosts: str) -> None:
        self.heartbeat.info = replace(self.heartbeat.info, hosts=hosts)

    async def report(self) -> ServiceDocument:
        await self.heartbeat.beat()
        reporter = Reporter(
            instance=self.heartbeat.info.instance,
            heartbeat=self.heartbeat,
            seconds=self.seconds,
            acts=lambda: self.site,
        )
        return reporter.report().document


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[One, One]]:
    """Two of them, whose leases hold for a minute and for a quarter of an hour."""
    async with AsyncExitStack() as stack:
        found = []
        for name, seconds in (("a", 60.0), ("b", 900.0)):
            journal = await SqlJournal.open(tmp_path / "journal.db", alone=False)
            await stack.enter_async_context(journal)
            info = ControllerInfo(name=name, instance=f"machine-{name}", version="1.0")
            heartbeat = Heartbeat(journal, info=info, seconds=seconds)
            await stack.enter_async_context(heartbeat)
            found.append(One(journal, heartbeat, seconds))
        yield found[0], found[1]


async def test_leases_of_every_length_are_told_with_their_age(pair: tuple[One, One], tmp_path: Path) -> None:
    first, second = pair
    await second.act()
    await run_sql(
        tmp_path / "journal.db", "UPDATE leases SET ends_at = ends_at - 20000000 WHERE name = 'site'"
    )
    for one in pair:
        await one.heartbeat.beat()
    for one in (first, second):
        ages = {each.name: each.age_seconds for each in (await one.report()).leases}
        assert 20 <= ages["site"] < 50
        assert ages["controller/a"] < 30
        assert ages["controller/b"] < 30


async def test_a_lease_of_an_older_version_which_does_not_say_its_length_has_an_age_too(
    pair: tuple[One, One], tmp_path: Path
) -> None:
    first, second = pair
    await second.heartbeat.beat()
    await run_sql(tmp_path / "journal.db", "UPDATE controllers SET schema = '0008' WHERE name = 'b'")
    ages = {each.name: each.age_seconds for each in (await first.report()).leases}
    assert ages["controller/b"] < 30


async def test_one_whose_lease_another_has_by_now_is_told_as_replaced_by_both(
    pair: tuple[One, One], tmp_path: Path
) -> None:
    first, second = pair
    await first.act()
    assert {each.name: each.role for each in (await first.report()).controllers} == {
        "a": "acting",
        "b": "standby",
    }
    await run_sql(tmp_path / "journal.db", "UPDATE leases SET ends_at = 1 WHERE name = 'site'")
    await second.act()
    told = await second.report()
    assert (told.role, told.acting) == ("acting", "machine-b")
    assert [each.role for each in told.controllers] == ["replaced", "acting"]
    told = await first.report()
    assert (told.role, told.acting) == ("replaced", "machine-b")
    assert [each.role for each in told.controllers] == ["replaced", "acting"]


@pytest.mark.parametrize(("minutes", "said"), [(15, "ahead of"), (-15, "behind")])
async def test_one_whose_machine_has_another_time_than_the_database_says_so(
    pair: tuple[One, One], minutes: int, said: str
) -> None:
    first, second = pair
    differences.watch(second.heartbeat)
    second.heartbeat.wall_clock = lambda: datetime.now(UTC) + timedelta(minutes=minutes)
    await second.report()
    await second.report()
    told = {each.name: each.detail for each in (await first.report()).controllers}
    assert told["a"] == ""
    assert f"its machine's clock is {said} the database's" in told["b"]
    second.heartbeat.wall_clock = lambda: datetime.now(UTC)
    await second.report()
    assert [each.detail for each in (await second.report()).controllers] == ["", ""]


async def test_one_that_stands_by_says_which_hosts_the_one_that_acts_has_and_it_has_not(
    pair: tuple[One, One], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pair
    logs.configure(verbose=True, json=True)
    try:
        for one in pair:
            differences.watch(one.heartbeat)
        first.configure("x", *(f"y{number}" for number in range(7)))
        second.configure("x", "z")
        await first.act()
        await first.report()
        await second.report()
        await second.report()
        told = await first.report()
        what = (
            "its [[hosts]] are not those of machine-a, which acts: it has not y0, y1, y2, y3, y4 and 2 more, "
            "and it alone has z"
        )
        assert {each.name: each.detail for each in told.controllers} == {"a": "", "b": what}
        second.configure("x", *(f"y{number}" for number in range(7)))
        await second.report()
        assert [each.detail for each in (await second.report()).controllers] == ["", ""]
    finally:
        logs.configure()
    assert capsys.readouterr().err.count("are not those of machine-a") == 1
