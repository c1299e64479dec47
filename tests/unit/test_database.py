"""How writes of many are done in one transaction."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncConnection

from migrator.store.database import Database


async def test_writes_of_one_transaction_lock_their_rows_in_the_order_that_all_controllers_keep(
    tmp_path: Path,
) -> None:
    opened = await Database.open(tmp_path / "journal.db")
    done: list[str] = []
    begun, asked = asyncio.Event(), asyncio.Event()

    async def keep_busy(connection: AsyncConnection) -> None:
        begun.set()
        await asked.wait()

    async def write(name: str) -> None:
        async def note(connection: AsyncConnection) -> None:
            done.append(name)

        await opened.write(note, order=name)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(opened.write(keep_busy))
            await begun.wait()
            for name in ("m2", "m3", "", "m1"):
                group.create_task(write(name))
            await asyncio.sleep(0)
            asked.set()
    finally:
        await opened.close()
    assert done == ["", "m1", "m2", "m3"]


async def test_a_lease_is_renewed_before_all_that_waits_to_be_written(tmp_path: Path) -> None:
    opened = await Database.open(tmp_path / "journal.db")
    done: list[str] = []
    begun, asked = asyncio.Event(), asyncio.Event()

    async def keep_busy(connection: AsyncConnection) -> None:
        begun.set()
        await asked.wait()

    async def note(connection: AsyncConnection) -> None:
        done.append("write")

    async def renew(connection: AsyncConnection) -> None:
        done.append("renewal")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(opened.write(keep_busy))
            await begun.wait()
            for _ in range(300):
                group.create_task(opened.write(note))
            await asyncio.sleep(0)
            group.create_task(opened.write_unleased(renew, first=True))
            await asyncio.sleep(0)
            asked.set()
    finally:
        await opened.close()
    assert done == ["renewal", *["write"] * 300]


async def test_where_writes_take_long_fewer_go_together_and_a_lease_waits_for_few_of_them(
    tmp_path: Path,
) -> None:
    opened = await Database.open(tmp_path / "journal.db")
    done: list[str] = []

    async def slow(connection: AsyncConnection) -> None:
        await asyncio.sleep(0.02)
        done.append("write")

    async def renew(connection: AsyncConnection) -> None:
        done.append("renewal")

    try:
        await asyncio.gather(*(opened.write(slow) for _ in range(40)))
        done.clear()
        async with asyncio.TaskGroup() as group:
            for _ in range(60):
                group.create_task(opened.write(slow))
            while not done:  # the first of them are being written
                await asyncio.sleep(0.001)
            group.create_task(opened.write_unleased(renew, first=True))
    finally:
        await opened.close()
    assert done.count("write") == 60
    assert 5 <= done.index("renewal") <= 20
