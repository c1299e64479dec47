"""What may be done to two QEMUs over raw QMP, and what they are seen to do: for comparing a fake with the real one.

A scenario is an async function of a :class:`Stage`. What both ends announce and refuse is written down by the stage in
an order that does not depend on who was quicker: for each end its events, then the refusals in the order they came,
then what both show at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from migrator.testing.raw_qmp import RawMonitor, RawQmpError

LIMIT_SECONDS = 15.0
_SLOW = 100 << 10  # bytes a second: an idle guest takes seconds


class End(Protocol):
    """A QEMU, real or not."""

    @property
    def qmp(self) -> Path: ...
    @property
    def alive(self) -> bool: ...
    def kill(self) -> None: ...


class Stage:
    """Two ends, a monitor to each, and what was seen."""

    def __init__(self, ends: tuple[End, End], source: RawMonitor, destination: RawMonitor) -> None:
        self.ends = ends
        self.source, self.destination = source, destination
        self.refusals: list[str] = []
        self.notes: list[str] = []
        self.address: dict[str, str] = {}

    async def refused(self, monitor: RawMonitor, command: str, arguments: Any = None, /, **more: Any) -> None:
        """Note what it answers, whether it refuses or not."""
        try:
            answer = await monitor.execute(command, arguments, **more)
            said = "accepted" if answer == {} else f"answered {answer}"
        except RawQmpError as error:
            said = f"{error.error['class']}: {error.error['desc']}"
        except ConnectionError:
            said = "hung up"
        self.refusals.append(f"{command}: {said}".replace(self.address.get("port", "?"), "PORT"))

    async def enable(self, *names: str) -> None:
        """Set capabilities on both ends; auto-converge only at the source."""
        wanted = [{"capability": name, "state": True} for name in ("events", "return-path", *names)]
        for monitor in (self.source, self.destination):
            await monitor.execute("migrate-set-capabilities", capabilities=wanted)

    async def listen(self) -> str:
        """migrate-incoming; the address to migrate to."""
        await self.destination.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
        self.address = (await self.destination.execute("query-migrate"))["socket-address"][0]
        return f"tcp:{self.address['host']}:{self.address['port']}"

    async def migrate(self, *, slow: bool = False) -> None:
        """Begin."""
        await self.source.execute("migrate-set-parameters", max_bandwidth=_SLOW if slow else 1 << 40)
        await self.source.execute("migrate", uri=await self.listen())

    async def status(self, monitor: RawMonitor, *wanted: str) -> str:
        """Wait until query-migrate shows one of these."""
        return await self._until(monitor, "query-migrate", wanted)

    async def run_state(self, monitor: RawMonitor, *wanted: str) -> str:
        """Wait until query-status shows one of these."""
        return await self._until(monitor, "query-status", wanted)

    async def _until(self, monitor: RawMonitor, command: str, wanted: tuple[str, ...]) -> str:
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                status = str((await monitor.execute(command)).get("status"))
                if status in wanted:
                    return status
                await asyncio.sleep(0.002)

    async def proceed(self) -> None:
        """From pre-switchover on."""
        await self.status(self.source, "pre-switchover")
        await self.source.execute("migrate-continue", state="pre-switchover")

    async def gone(self, end: End) -> None:
        """Wait for the end of a process."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while end.alive:
                await asyncio.sleep(0.005)

    async def settle(self) -> list[str]:
        """What was seen, once nothing more comes."""
        last = []
        for monitor, name, end in zip(
            (self.source, self.destination), ("source", "destination"), self.ends, strict=True
        ):
            with contextlib.suppress(TimeoutError, ConnectionError, RawQmpError):
                while True:
                    await monitor.event(within=0.1)
            try:
                run = (await monitor.execute("query-status"))["status"]
                migrate = await monitor.execute("query-migrate")
            except ConnectionError:
                await self.gone(end)
                last.append(f"{name} at the end: gone")
            else:
                last.append(f"{name} at the end: {run}, {migrate.get('status')}")
        return [
            *_events("source", self.source, self.ends[0]),
            *_events("destination", self.destination, self.ends[1]),
            *self.notes,
            *self.refusals,
            *last,
        ]


def _events(side: str, monitor: RawMonitor, end: End) -> list[str]:
    seen: list[str] = []
    for event in monitor.events:
        data = event.get("data", {})
        name = event["event"]
        detail = data.get("status") or data.get("reason") or ""
        line = f"{side} {name} {detail}".strip()
        # How many rounds it takes, and how often the firmware resets itself, is a matter of time.
        if name not in ("MIGRATION_PASS", "RTC_CHANGE") and detail != "guest-reset":
            seen.append(line)
    if not end.alive and seen and seen[-1] == f"{side} MIGRATION failed":
        seen.pop()  # the process may end before it has said so
    return seen


async def precopy(stage: Stage) -> None:
    """With the pause before the switch that every careful controller uses."""
    await stage.enable("pause-before-switchover")
    await stage.migrate()
    await stage.proceed()
    await stage.status(stage.source, "completed")
    await stage.run_state(stage.destination, "paused")
    await stage.refused(stage.source, "migrate", uri="tcp:127.0.0.1:1")
    await stage.destination.execute("cont")


async def precopy_to_one_that_starts_by_itself(stage: Stage) -> None:
    """What ``cont`` while it waits does: never to be done."""
    await stage.enable("pause-before-switchover")
    await stage.destination.execute("cont")
    await stage.migrate()
    await stage.proceed()
    await stage.status(stage.source, "completed")
    await stage.run_state(stage.destination, "running")


async def precopy_without_pause(stage: Stage) -> None:
    await stage.enable()
    await stage.migrate()
    await stage.status(stage.source, "completed")
    await stage.run_state(stage.destination, "paused")
    await stage.destination.execute("cont")
    await stage.source.execute("quit")
    await stage.gone(stage.ends[0])


async def precopy_of_a_paused_guest(stage: Stage) -> None:
    await stage.enable("pause-before-switchover")
    await stage.source.execute("stop")
    await stage.migrate()
    await stage.proceed()
    await stage.status(stage.source, "completed")
    await stage.run_state(stage.destination, "paused")


async def stopped_while_active(stage: Stage) -> None:
    await stage.enable("pause-before-switchover")
    await stage.migrate(slow=True)
    await stage.status(stage.source, "active")
    await stage.source.execute("stop")
    await stage.run_state(stage.source, "paused")
    await stage.source.execute("migrate-set-parameters", max_bandwidth=1 << 40)
    await stage.proceed()
    await stage.status(stage.source, "completed")
    await stage.run_state(stage.destination, "paused")


async def cancel_while_active(stage: Stage) -> None:
    await stage.enable("pause-before-switchover")
    await stage.migrate(slow=True)
    await stage.status(stage.source, "active")
    await stage.status(stage.destination, "active")
    await stage.refused(stage.source, "migrate", uri="tcp:127.0.0.1:1")
    await stage.refused(
        stage.source,
        "migrate-set-capabilities",
        capabilities=[{"capability": "xbzrle", "state": True}],
    )
    await stage.refused(stage.source, "migrate-continue", state="pre-switchover")
    await stage.refused(stage.source, "migrate-start-postcopy")
    await stage.refused(stage.destination, "migrate-incoming", uri="tcp:127.0.0.1:0")
    await stage.source.execute("migrate_cancel")
    await stage.status(stage.source, "cancelled")
    await stage.gone(stage.ends[1])


async def cancel_at_pre_switchover(stage: Stage) -> None:
    await stage.enable("pause-before-switchover")
    await stage.migrate()
    await stage.status(stage.source, "pre-switchover")
    await stage.refused(stage.source, "cont")
    await stage.source.execute("migrate_cancel")
    await stage.status(stage.source, "cancelled")
    await stage.run_state(stage.source, "running")
    await stage.gone(stage.ends[1])


async def cancel_at_pre_switchover_paused(stage: Stage) -> None:
    await stage.enable("pause-before-switchover")
    await stage.source.execute("stop")
    await stage.migrate()
    await stage.status(stage.source, "pre-switchover")
    await stage.source.execute("migrate_cancel")
    await stage.status(stage.source, "cancelled")
    await stage.gone(stage.ends[1])
    await stage.refused(stage.source, "migrate", uri="tcp:127.0.0.1:1")


async def cancel_at_pre_switchover_to_postcopy(stage: Stage) -> None:
    await stage.enable("pause-before-switchover", "postcopy-ram")
    await stage.migrate()
    await stage.source.execute("migrate-start-postcopy")
    await stage.status(stage.source, "pre-switchover")
    await stage.source.execute("migrate_cancel")
    await stage.status(stage.source, "cancelled")
    await stage.gone(stage.ends[1])


async def destination_dies_while_active(stage: Stage) -> None:
    await stage.enable("pause-before-switchover")
    await stage.migrate(slow=True)
    await stage.status(stage.source, "active")
    await stage.status(stage.destination, "active")
    stage.ends[1].kill()
    await stage.status(stage.source, "failed")
    await stage.run_state(stage.source, "running")


async def destination_dies_at_pre_switchover(stage: Stage) -> None:
    await stage.enable("pause-before-switchover")
    await stage.migrate()
    await stage.status(stage.source, "pre-switchover")
    stage.ends[1].kill()
    await stage.gone(stage.ends[1])
    await asyncio.sleep(0.3)
    await stage.status(stage.source, "pre-switchover")
    await stage.source.execute("migrate-continue", state="pre-switchover")
    await stage.status(stage.source, "failed")
    await stage.run_state(stage.source, "running")


async def destination_dies_before_a_postcopy(stage: Stage) -> None:
    """The source is stuck for ever, in different ways."""
    await stage.enable("pause-before-switchover", "postcopy-ram")
    await stage.migrate()
    await stage.source.execute("migrate-start-postcopy")
    await stage.status(stage.source, "pre-switchover")
    stage.ends[1].kill()
    await stage.gone(stage.ends[1])
    await stage.source.execute("migrate-continue", state="pre-switchover")
    await stage.status(stage.source, "postcopy-paused", "device", "failed")
    await asyncio.sleep(0.2)
    await stage.refused(stage.source, "cont")


async def destination_dies_behind_a_postcopy_switch(stage: Stage) -> None:
    """It has the guest, and was not told to let it run."""
    await stage.enable("pause-before-switchover", "postcopy-ram")
    await to_postcopy(stage)
    stage.ends[1].kill()
    await stage.status(stage.source, "postcopy-paused")
    await stage.refused(stage.source, "cont")


async def yanked_while_active(stage: Stage) -> None:
    await stage.enable("pause-before-switchover")
    await stage.migrate(slow=True)
    await stage.status(stage.source, "active")
    await stage.status(stage.destination, "active")
    await stage.refused(stage.source, "yank", instances=[{"type": "migration"}])
    await stage.status(stage.source, "failed")
    await stage.gone(stage.ends[1])


async def migrated_twice(stage: Stage) -> None:
    """What arrived may go on, once somebody let it run."""
    await precopy_without_pause(stage)
    await stage.refused(stage.destination, "migrate", uri="tcp:127.0.0.1:1")
    await stage.status(stage.destination, "failed")


async def source_dies_while_active(stage: Stage) -> None:
    await stage.enable()
    await stage.migrate(slow=True)
    await stage.status(stage.source, "active")
    await stage.status(stage.destination, "active")
    stage.ends[0].kill()
    await stage.gone(stage.ends[1])


async def to_postcopy(stage: Stage) -> None:
    """Until the destination has what it needs to run the guest, with much left to fetch."""
    await stage.migrate(slow=True)
    await stage.source.execute("migrate-set-parameters", max_postcopy_bandwidth=10 * _SLOW)
    await stage.status(stage.source, "active")
    await stage.source.execute("migrate-start-postcopy")
    if await stage.status(stage.source, "pre-switchover", "postcopy-active") == "pre-switchover":
        await stage.proceed()
    await stage.status(stage.source, "postcopy-active")
    await stage.run_state(stage.destination, "paused")


async def postcopy(stage: Stage) -> None:
    await stage.enable("pause-before-switchover", "postcopy-ram")
    await to_postcopy(stage)
    await stage.destination.execute("cont")
    await stage.source.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    await stage.status(stage.source, "completed")
    await stage.status(stage.destination, "completed")
    await stage.run_state(stage.source, "postmigrate")


async def postcopy_without_pause(stage: Stage) -> None:
    await stage.enable("postcopy-ram")
    await to_postcopy(stage)
    await stage.destination.execute("cont")
    await stage.source.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    await stage.status(stage.source, "completed")
    await stage.status(stage.destination, "completed")


async def slow_postcopy(stage: Stage) -> None:
    """To postcopy-active, with the destination's guest running and much left to fetch."""
    await stage.enable("pause-before-switchover", "postcopy-ram")
    await to_postcopy(stage)
    await stage.destination.execute("cont")
    # A vCPU that waits for a page while it holds QEMU's lock would block the monitor for as long as the stream rests.
    await asyncio.sleep(0.5)


async def cancel_in_postcopy(stage: Stage) -> None:
    await slow_postcopy(stage)
    await stage.refused(stage.source, "cont")
    await stage.refused(stage.source, "migrate_cancel")
    await asyncio.sleep(0.3)


async def postcopy_paused_and_recovered(stage: Stage) -> None:
    await slow_postcopy(stage)
    await stage.refused(stage.source, "migrate-pause")
    await stage.status(stage.source, "postcopy-paused")
    await stage.status(stage.destination, "postcopy-paused")
    await stage.refused(stage.source, "cont")
    await stage.refused(stage.destination, "migrate-recover", uri="tcp:127.0.0.1:0")
    stage.address = (await stage.destination.execute("query-migrate"))["socket-address"][0]
    uri = f"tcp:{stage.address['host']}:{stage.address['port']}"
    await stage.source.execute("migrate-set-parameters", max_postcopy_bandwidth=0)
    await stage.refused(stage.source, "migrate", uri=uri)
    await stage.refused(stage.source, "migrate", uri=uri, resume=True)
    await stage.status(stage.source, "completed")
    await stage.status(stage.destination, "completed")


async def destination_dies_in_postcopy(stage: Stage) -> None:
    await slow_postcopy(stage)
    await asyncio.sleep(0.6)
    stage.ends[1].kill()
    await stage.status(stage.source, "postcopy-paused")
    await stage.refused(stage.source, "cont")


async def powered_off_while_active(stage: Stage) -> None:
    await stage.enable("pause-before-switchover")
    await stage.migrate(slow=True)
    await stage.status(stage.source, "active")
    await stage.status(stage.destination, "active")
    await stage.source.execute("system_powerdown")
    await stage.gone(stage.ends[0])
    await stage.gone(stage.ends[1])


async def reset_while_active(stage: Stage) -> None:
    await stage.enable("pause-before-switchover")
    await stage.migrate(slow=True)
    await stage.status(stage.source, "active")
    await stage.source.execute("system_reset")
    await stage.source.event("RESET")
    await stage.source.execute("migrate_cancel")
    await stage.status(stage.source, "cancelled")
    await stage.gone(stage.ends[1])


async def nobody_listens(stage: Stage) -> None:
    await stage.enable()
    stage.address = {"port": "1"}
    await stage.refused(stage.source, "migrate", uri="tcp:127.0.0.1:1")
    await stage.status(stage.source, "failed")
    await stage.run_state(stage.source, "running")


async def refusals(stage: Stage) -> None:
    """What is refused at rest, and what is not."""
    source, destination = stage.source, stage.destination

    async def capability(monitor: RawMonitor, *names: str, state: bool = True) -> None:
        wanted = [{"capability": name, "state": state} for name in names]
        await stage.refused(monitor, "migrate-set-capabilities", capabilities=wanted)

    await stage.refused(source, "qmp_capabilities")
    await stage.refused(source, "there-is-no-such-command")
    await stage.refused(source, "query-status", some="argument")
    await stage.refused(source, "migrate-set-parameters", no_such=1)
    await stage.refused(source, "migrate")
    await stage.refused(source, "migrate", uri="pigeon:post")
    await stage.refused(source, "migrate", uri="tcp:127.0.0.1:1", resume=True)
    await stage.refused(source, "migrate-incoming", uri="tcp:127.0.0.1:0")
    await stage.refused(source, "migrate-continue", state="pre-switchover")
    await stage.refused(source, "migrate-start-postcopy")
    await stage.refused(source, "migrate-pause")
    await stage.refused(source, "migrate-recover", uri="tcp:127.0.0.1:0")
    await stage.refused(source, "migrate_cancel")
    await stage.refused(source, "yank", instances=[{"type": "migration"}])
    await stage.refused(source, "cont")
    await stage.refused(source, "stop")
    await stage.refused(source, "stop")
    await stage.refused(source, "cont")
    for name, value in (
        ("downtime-limit", 2000001),
        ("downtime-limit", -1),
        ("max-bandwidth", "much"),
        ("max-cpu-throttle", 100),
        ("cpu-throttle-initial", 0),
        ("throttle-trigger-threshold", 0),
        ("throttle-trigger-threshold", 101),
    ):
        await stage.refused(source, "migrate-set-parameters", {name: value})
    await capability(source, "no-such-capability")
    await capability(source, "postcopy-preempt")
    await capability(source, "zero-copy-send")
    await capability(source, "postcopy-ram")
    await stage.refused(source, "migrate-start-postcopy")
    await capability(source, "postcopy-preempt")
    await capability(source, "postcopy-preempt", state=False)
    await capability(source, "multifd")
    await capability(source, "multifd", "postcopy-ram", state=False)
    await capability(source, "multifd", "xbzrle")
    await capability(source, "multifd", "xbzrle", state=False)
    await stage.refused(destination, "migrate", uri="tcp:127.0.0.1:1")
    await stage.refused(destination, "migrate-incoming", uri="pigeon:post")
    await stage.listen()
    await stage.refused(destination, "migrate-incoming", uri="tcp:127.0.0.1:0")
    await stage.refused(destination, "stop")
    await stage.refused(destination, "cont")
    await stage.refused(destination, "migrate-recover", uri="tcp:127.0.0.1:0")
    await stage.refused(destination, "migrate_cancel")


SCENARIOS: tuple[Callable[[Stage], Awaitable[None]], ...] = (
    precopy,
    precopy_to_one_that_starts_by_itself,
    precopy_without_pause,
    precopy_of_a_paused_guest,
    stopped_while_active,
    cancel_while_active,
    cancel_at_pre_switchover,
    cancel_at_pre_switchover_paused,
    cancel_at_pre_switchover_to_postcopy,
    destination_dies_while_active,
    destination_dies_at_pre_switchover,
    destination_dies_before_a_postcopy,
    destination_dies_behind_a_postcopy_switch,
    source_dies_while_active,
    yanked_while_active,
    migrated_twice,
    postcopy,
    postcopy_without_pause,
    cancel_in_postcopy,
    postcopy_paused_and_recovered,
    destination_dies_in_postcopy,
    powered_off_while_active,
    reset_while_active,
    nobody_listens,
    refusals,
)


async def play(scenario: Callable[[Stage], Awaitable[None]], ends: tuple[End, End]) -> list[str]:
    """Run a scenario; what was seen."""
    async with RawMonitor(ends[0].qmp) as source, RawMonitor(ends[1].qmp) as destination:
        stage = Stage(ends, source, destination)
        await scenario(stage)
        return await stage.settle()
