"""Maintenance windows: what is scheduled begins in time, is forecast until then, and is told before it begins.

Run by whichever controller plans, so that each begins once: that it has begun is in the journal, in the transaction
that puts its host to ``draining``, before anything of it is done.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from migrator import logs
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.states import EvacuationState
from migrator.core.drain.window import Due, WindowForecast, due, judge
from migrator.core.inventory import HostState
from migrator.engine import clock
from migrator.engine.announcer import Announcer
from migrator.engine.evacuation_documents import journalled
from migrator.engine.evacuations import Evacuations
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.preview import Preview
from migrator.engine.registry import Registry
from migrator.engine.reservations import Reservations
from migrator.engine.snapshots import Snapshots
from migrator.errors import Fault, JournalError, Unavailable
from migrator.faults import contained

#: Windows are looked at so often at least; the clock of the machine may be set meanwhile.
_LOOK_SECONDS = 10.0
#: One that could not begin (its host is down, or taken) is tried again after so long.
_AGAIN_SECONDS = 5.0
#: Whether a window will do is forecast anew so often.
_FORECAST_SECONDS = 900.0


class Windows:
    """Evacuations that wait for their windows.

    :param changed: called when there is something new to plan.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        inventory: Inventory,
        reservations: Reservations,
        evacuations: Evacuations,
        announcer: Announcer,
        snapshots: Snapshots,
        preview: Preview,
        journal_writer: JournalWriter,
        changed: Callable[[], None],
    ) -> None:
        self._registry, self._inventory, self._reservations = registry, inventory, reservations
        self._evacuations, self._announcer, self._snapshots = evacuations, announcer, snapshots
        self._preview, self._journal_writer, self._changed = preview, journal_writer, changed
        self._wake = asyncio.Event()
        #: When each was last forecast, on the engine's clock.
        self._forecast_at: dict[str, float] = {}
        self._forecasting: asyncio.Task[None] | None = None
        self._log = logs.logger()

    def wake(self) -> None:
        """Look again at all windows soon."""
        self._wake.set()

    async def run(self) -> None:
        """Begin, tell and forecast, until cancelled."""
        try:
            while True:
                self._wake.clear()
                pause = await self._turn()
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            if self._forecasting is not None:
                self._forecasting.cancel()

    async def _turn(self) -> float:
        """Do what is due; seconds until the next turn at the latest."""
        pause = _LOOK_SECONDS
        waiting = self._registry.scheduled()
        for run in waiting if self._registry.may_begin else ():
            now = datetime.now(UTC)
            match due(run.window, now, noticed=run.begins_soon):
                case Due.BEGIN:
                    if not await self._begin(run):
                        pause = min(pause, _AGAIN_SECONDS)
                case Due.MISSED:
                    why = run.window_forecast.text if run.begins_soon else ""
                    self._evacuations.end(
                        run.id,
                        EvacuationState.STOPPED,
                        f"its time has passed and nothing was begun{why and f': {why}'}",
                    )
                case Due.NOTICE:
                    self._registry.change(run.id, lambda each: replace(each, begins_soon=True))
                    self._announcer.evacuation(run.id, at_once=True)
                case Due.WAIT:
                    starts = run.window.starts_at
                    if starts is not None:
                        pause = min(pause, max(0.0, (starts - now).total_seconds()))
        self._forecast(waiting)
        return pause

    # --- its begin ---------------------------------------------------------------------------------------------------

    async def _begin(self, run: Evacuation) -> bool:
        """Begin to empty its host; False: not yet, and why is said."""
        for other in self._registry.running():
            if other.host == run.host:
                verb = "emptied by evacuation" if other.kind == "evacuate" else "filled again by restore"
                return self._put_off(run, f"{run.host} is being {verb} {other.id}")
        async with self._reservations.hold(("host", run.host), ("evacuation", run.id)):
            if self._inventory.host(run.host) is None:
                return self._put_off(run, f"there is no host {run.host} any more")
            host = await self._inventory.look(run.host)
            if not host.up:
                return self._put_off(run, f"it cannot be emptied: {host.error}")
            now = self._registry.evacuations.get(run.id)
            if now is None or not now.scheduled or not self._registry.may_begin:
                return True  # it was cancelled
            begun = replace(now, state=EvacuationState.RUNNING)
            begun = begun.took_in(self._snapshots.take().here_or_coming(run.host))
            begun = begun.holding_to(self._preview.planned(run.host))
            try:
                await self._journal_writer.commit(
                    ("evacuation", lambda: journalled(begun)),
                    ("host", lambda: self._evacuations.host_saved(run.host, state=HostState.DRAINING)),
                    then=lambda: self._evacuations.begin(begun, HostState.DRAINING),
                )
            except JournalError as error:
                self._log.warning("window not begun", evacuation=run.id, host=run.host, error=str(error))
                return False
        return True

    def _put_off(self, run: Evacuation, why: str) -> bool:
        text = f"it waits: {why}"
        if run.window_forecast.text != text:
            self._log.warning("window not begun", evacuation=run.id, host=run.host, error=why)
            self._change(run, replace(run.window_forecast, text=text))
        return False

    # --- what will come of it ----------------------------------------------------------------------------------------

    def _forecast(self, waiting: list[Evacuation]) -> None:
        """Begin a forecast of the one that has waited longest for it; one at a time, as each asks the QEMUs."""
        self._forecast_at = {
            run.id: at for run in waiting if (at := self._forecast_at.get(run.id)) is not None
        }
        if self._forecasting is not None or not self._registry.may_begin:
            return
        waiting = [run for run in waiting if self._registry.evacuations.get(run.id) is run]
        run = min(waiting, key=lambda each: self._forecast_at.get(each.id, -math.inf), default=None)
        if run is None or clock.now() - self._forecast_at.get(run.id, -math.inf) < _FORECAST_SECONDS:
            return
        self._forecast_at[run.id] = clock.now()
        self._forecasting = asyncio.create_task(
            self._make_forecast(run.id), name=f"forecast of window {run.id}"
        )
        self._forecasting.add_done_callback(self._forecast_made)

    def _forecast_made(self, task: asyncio.Task[None]) -> None:
        self._forecasting = None
        if not task.cancelled():
            task.exception()  # it is in the log
        self.wake()

    async def _make_forecast(self, identifier: str) -> None:
        run = self._registry.evacuations[identifier]
        try:
            with contained(f"the forecast of window {identifier}"):
                found = await self._foreseen(run)
        except (Fault, Unavailable) as error:
            self._log.info("no forecast of a window", evacuation=identifier, error=str(error))
            return
        now = self._registry.evacuations.get(identifier)
        if now is None or not now.scheduled or found == now.window_forecast:
            return
        if found.fit is not now.window_forecast.fit:
            self._log.info(
                "window", evacuation=identifier, host=now.host, fit=str(found.fit), forecast=found.text
            )
        self._change(now, found)

    async def _foreseen(self, run: Evacuation) -> WindowForecast:
        host = self._inventory.host(run.host)
        if host is not None:
            host = await self._inventory.look(run.host)
        if host is None or not host.up:
            return WindowForecast(
                text=f"it cannot be foretold: {host.error if host else 'there is no such host'}"
            )
        plan = await self._preview.plan(run.host, run.policy or None, run.accept)
        return judge(
            run.window,
            guests=len(plan.guests),
            cannot_move=plan.cannot_move,
            p50_seconds=plan.takes_p50_seconds,
            p90_seconds=plan.takes_p90_seconds,
        )

    def _change(self, run: Evacuation, forecast: WindowForecast) -> None:
        """Note a forecast; everyone is told."""
        at_risk = forecast.fit.endangers
        self._registry.change(
            run.id,
            lambda now: replace(now, window_forecast=forecast, at_risk=at_risk) if now.scheduled else now,
        )
        self._announcer.evacuation(run.id, at_once=True)
