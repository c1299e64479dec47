"""What a source shows of a migration that libvirt carries out: times count from when the stream began."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from migrator.core.model import RunState
from migrator.libvirt.binding import load
from migrator.libvirt.domain_view import DomainLook
from migrator.libvirt.migration import DomainDestination, DomainSource
from migrator.ports.managed import ManagedOptions

UUID = "0b5ab7a4-0000-4000-8000-000000000001"


class Connection:
    """A connection to a libvirt that shows what it is told to show, and moves nothing."""

    host = "alpha"

    def __init__(self) -> None:
        self.shows: DomainLook | None = None

    def subscribe(self, callback: Callable[..., None]) -> Callable[[], None]:
        return lambda: None

    async def open(self) -> None:
        """Do nothing."""

    async def begin(self, *_: Any, **__: Any) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    async def call(self, *_: Any, **__: Any) -> DomainLook | None:
        return self.shows

    def works(self, **stats: int) -> None:
        module = load()
        job: Mapping[str, int] = {
            "type": module.VIR_DOMAIN_JOB_UNBOUNDED,
            "operation": module.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT,
        }
        self.shows = DomainLook(
            state=module.VIR_DOMAIN_RUNNING, reason=0, run=RunState.RUNNING, stats={**job, **stats}
        )


async def _seconds(source: DomainSource) -> float:
    sample = (await source.observe()).sample
    assert sample is not None
    return sample.at_seconds


@pytest.mark.parametrize("begun", [True, False], ids=["begun here", "taken up"])
async def test_times_count_from_when_the_stream_was_seen_to_begin(begun: bool) -> None:
    connection = Connection()
    source = DomainSource(connection, UUID)  # type: ignore[arg-type]  # as far as it is used
    if begun:
        there = DomainDestination(connection, UUID, peer_uri="qemu:///system")  # type: ignore[arg-type]
        await source.begin_managed(there, ManagedOptions(listen="tcp:127.0.0.1:0", persistent=False))
    connection.works(time_elapsed=400)  # libvirt starts what the guest will arrive in
    assert (await source.observe()).sample is None
    connection.works(time_elapsed=900, memory_total=1 << 20, memory_iteration=1)
    assert await _seconds(source) == pytest.approx(0.0 if begun else 0.9)
    connection.works(time_elapsed=1300, memory_total=1 << 20, memory_iteration=3)
    assert await _seconds(source) == pytest.approx(0.4 if begun else 1.3)
