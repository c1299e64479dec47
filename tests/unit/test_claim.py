"""Who may change a QEMU: one controller at a time, by its mark."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from migrator.core.migration.drivers import MARK, Driver, may_follow
from migrator.errors import CommandFailed, Driven
from migrator.machine import LocalProcess, is_gone_as_seen_here, own_process, this_driver
from migrator.qemu import marks
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.testing.fake_qemu import FakeQemu
from migrator.testing.lab import RawMonitor


def a_driver(controller: str, process: dict[str, Any] | None = None) -> Driver:
    return replace(
        this_driver("a test", controller=controller), process=own_process() if process is None else process
    )


@pytest.fixture
def dead() -> dict[str, Any]:
    """A process that has ended."""
    child = subprocess.Popen(["sleep", "60"])
    process = LocalProcess(child.pid)
    identity = own_process() | process.identity
    process.close()
    child.kill()
    child.wait()
    return identity


@pytest.fixture
async def qemu() -> AsyncIterator[FakeQemu]:
    async with FakeQemu() as qemu:
        yield qemu


EndOf = Callable[..., Endpoint]


@pytest.fixture
async def end_of(qemu: FakeQemu) -> AsyncIterator[EndOf]:
    """``end_of(driver)``: the QEMU as that controller sees it, each through a monitor of its own."""
    monitors, ends = iter((qemu.qmp, qemu.rescue)), list[Endpoint]()

    def make(driver: Driver | None, **how: Any) -> Endpoint:
        address = Address(kind="unix", path=str(next(monitors)))
        ends.append(Endpoint(address, role="source", driver=driver, **how))
        return ends[-1]

    yield make
    for end in ends:
        await end.close()


class TestMayFollow:
    @pytest.mark.parametrize(
        ("same_controller", "gone", "may"),
        [
            (True, True, True),
            (True, None, True),
            (True, False, False),
            (False, True, True),
            (False, None, False),
            (False, False, False),
        ],
    )
    def test_a_dead_one_or_itself_after_a_restart(
        self, same_controller: bool, gone: bool | None, may: bool
    ) -> None:
        mine, other = a_driver("a"), a_driver("a" if same_controller else "b")
        assert may_follow(mine, other, other_is_gone=gone) is may

    @pytest.mark.parametrize("gone", [None, False])
    def test_of_those_who_share_a_journal_the_later_lease_whoever_lives(self, gone: bool | None) -> None:
        early, late = replace(a_driver("a"), lease=3), replace(a_driver("a"), lease=4)
        assert may_follow(late, early, other_is_gone=gone)
        assert not may_follow(early, late, other_is_gone=gone)
        assert not may_follow(late, replace(early, controller="b"), other_is_gone=gone)
        assert may_follow(early, late, other_is_gone=True), "a dead one is followed by anybody"
        assert Driver.read(late.text()) == late

    def test_never_what_cannot_be_read(self) -> None:
        assert not may_follow(a_driver(""), Driver.read("{"), other_is_gone=None)

    def test_another_boot_or_another_pid_namespace_may_be_another_machine(self) -> None:
        assert is_gone_as_seen_here(own_process()) is False
        assert is_gone_as_seen_here(own_process() | {"boot_id": "another"}) is None
        assert is_gone_as_seen_here(own_process() | {"pid_namespace": "pid:[1]"}) is None
        assert is_gone_as_seen_here({}) is None


class TestClaim:
    async def test_of_two_at_once_one_has_it_and_the_other_is_told_who(self, end_of: EndOf) -> None:
        one, two = end_of(a_driver("a")), end_of(a_driver("b"))
        await asyncio.gather(one.connect(), two.connect())
        outcomes = await asyncio.gather(one.claim("m1"), two.claim("m2"), return_exceptions=True)
        (refused,) = [outcome for outcome in outcomes if outcome is not None]
        assert isinstance(refused, Driven)
        assert f"it is driven by a test, pid {os.getpid()} on " in str(refused)
        assert str(refused).endswith(", which is alive")

    async def test_of_two_that_follow_a_dead_one_at_once_one_has_it(
        self, end_of: EndOf, dead: dict[str, Any]
    ) -> None:
        one, two = end_of(a_driver("a")), end_of(a_driver("b"))
        await asyncio.gather(one.connect(), two.connect())
        assert await marks.add(one.monitor, MARK, a_driver("c", dead).text())
        outcomes = await asyncio.gather(one.claim("m1"), two.claim("m2"), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes if outcome is not None] == [Driven]
        found = await marks.read(one.monitor, MARK)
        assert Driver.read(found[MARK]).migration == ("m1" if outcomes[0] is None else "m2")

    async def test_one_that_died_while_it_followed_another_is_followed(
        self, end_of: EndOf, dead: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = end_of(a_driver("b", dead)), end_of(a_driver("c"))
        await asyncio.gather(one.connect(), two.connect())
        await marks.add(one.monitor, MARK, a_driver("a", dead).text())

        async def dies(*_: object, **__: object) -> None:
            raise asyncio.CancelledError

        with monkeypatch.context() as patch:
            patch.setattr(marks, "remove", dies)
            with pytest.raises(asyncio.CancelledError):
                await one.claim("")
        await two.claim("mine")
        assert Driver.read((await marks.read(two.monitor, MARK))[MARK]).migration == "mine"

    async def test_one_whose_lease_has_ended_sends_nothing_once_the_next_one_is_there(
        self, end_of: EndOf
    ) -> None:
        holds = True
        one = end_of(replace(a_driver("a"), lease=1), lease_holds=lambda: holds)
        two = end_of(replace(a_driver("a"), lease=2))
        await asyncio.gather(one.connect(), two.connect())
        await one.claim("m")
        await one.stop()
        holds = False
        await one.cont()  # nobody has followed: what has to be finished is
        await two.claim("m")
        with pytest.raises(Driven, match="another controller has taken it over"):
            await one.stop()
        await two.stop()

    async def test_one_whose_lease_has_ended_ends_no_process_that_it_cannot_ask(
        self, qemu: FakeQemu, end_of: EndOf
    ) -> None:
        holds = True
        one = end_of(replace(a_driver("a"), lease=1), lease_holds=lambda: holds)
        await one.connect()
        await one.claim("m")
        await one.release_monitor()  # as when its successor has it
        holds = False
        for command in (one.quit, one.fence, one.cancel):
            with pytest.raises(Driven, match="another controller may have it by now"):
                await command()
        async with RawMonitor(qemu.rescue) as monitor:
            assert (await monitor.execute("query-status"))["status"] == "running"

    async def test_one_that_cannot_be_seen_is_followed_at_a_persons_word_alone(self, end_of: EndOf) -> None:
        far = a_driver("a", own_process() | {"boot_id": "another"})
        one, two = end_of(a_driver("b")), end_of(a_driver("c"), by_force=True)
        await asyncio.gather(one.connect(), two.connect())
        await marks.add(one.monitor, MARK, far.text())
        assert (await one.facts()).driven_by.endswith("which cannot be seen from here")
        with pytest.raises(Driven, match="which cannot be seen from here"):
            await one.stop()
        await two.claim("")

    async def test_nothing_is_sent_by_who_slept_while_another_took_over(
        self, qemu: FakeQemu, end_of: EndOf
    ) -> None:
        one, two = end_of(a_driver("a", {}), asleep_after_seconds=0.0), end_of(a_driver("b"), by_force=True)
        await asyncio.gather(one.connect(), two.connect())
        await one.claim("m1")
        await two.claim("m2")
        for command in (one.stop, one.cont, one.switch, one.cancel, one.quit, one.fence):
            with pytest.raises(Driven, match="another controller has taken it over: it is marked by a test"):
                await command()
        await one.release()
        assert qemu.running
        assert Driver.read((await marks.read(two.monitor, MARK))[MARK]).migration == "m2"
        assert qemu.alive


async def test_stop_is_not_sent_to_a_qemu_that_does_not_wait_for_a_guest(
    qemu: FakeQemu, end_of: EndOf
) -> None:
    end = end_of(None)
    await end.connect()
    with pytest.raises(CommandFailed, match=r"it does not wait for a guest \(it is running\)"):
        await end.listen("tcp:127.0.0.1:0")
    assert qemu.running
