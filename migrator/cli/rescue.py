"""``migrator direct --rescue``: what a migration left and nobody drives, ended from what both QEMUs show."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from migrator.cli import Exit
from migrator.cli.direct_network import DirectGuestNetworks, listen_uri
from migrator.core.migration import rescue
from migrator.core.migration.drivers import Driver
from migrator.core.migration.rescue import RescuePlan, RescueRefusal, RescueSituation
from migrator.core.migration.situation import Intent, OperatorAnswer
from migrator.core.model import State, View
from migrator.core.policy import builtin
from migrator.engine.migration.driver import MigrationDriver
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.errors import Driven, QemuError, UsageError
from migrator.machine import this_driver
from migrator.ports import MigrationSettings, StreamPath
from migrator.qemu import address
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.store.records import Unfinished
from migrator.text import clean

if TYPE_CHECKING:
    from migrator.cli.direct_command import Request
    from migrator.cli.over_ssh import OverSsh
    from migrator.cli.show import Screen

#: Both ends must show the same for so long: a command of a controller that is gone has been carried out by then.
_SETTLED_SECONDS = 1.0
#: Seconds that they are given to come to rest.
_REST_SECONDS = 15.0
_SIDES = ("source", "destination")
_GUEST_AT = {State.COMPLETED: "destination", State.CANCELLED: "source"}
_ITS_OWN = (
    "it is to end what it began; where it is dead for certain and cannot be seen from here, add --take-over"
)


class _Unrecorded:
    """A record that is none: a rescue looks at both ends anew wherever it was broken off."""

    noted_at = None

    async def begin(self, facts: Mapping[str, Any], intent: Intent) -> None:
        pass

    async def note(self, intent: Intent) -> None:
        pass

    def note_behind(self, intent: Intent) -> None:
        pass

    async def end(self, outcome: Mapping[str, Any]) -> None:
        pass


def parse(request: Request) -> tuple[Address | None, Address | None]:
    """Return where both ends are; one of them may be left out.

    :raise UsageError: what was given does not go together.
    """
    here = address.parse(request.source) if request.source else None
    there = address.parse(request.destination) if request.destination else None
    if here is None and there is None:
        raise UsageError("--rescue: give --source, --destination, or both")
    if request.guest_at not in (None, *_SIDES):
        raise UsageError(f"--guest-at: {request.guest_at!r} is neither source nor destination")
    if request.run_state not in (None, "running", "paused"):
        raise UsageError(f"--run-state: {request.run_state!r} is neither running nor paused")
    return here, there


class Rescue:
    """Rescues the guest of one pair.

    :param here: the source's monitor; ``None`` where its process is gone, as a person says by leaving it out.
    :param there: the destination's, likewise.
    :param left: the record of the pair, where there is one all the same.
    """

    def __init__(
        self,
        request: Request,
        here: Address | None,
        there: Address | None,
        *,
        left: Unfinished | None,
        over_ssh: OverSsh,
        tls: Any,
        screen: Screen,
    ) -> None:
        self._request = request
        self._here, self._there, self._over_ssh = here, there, over_ssh
        self._left = left
        self._screen = screen
        self._name = left.record.path.stem if left else os.urandom(6).hex()
        driver = this_driver("migrator direct --rescue", controller=self._name)
        nowhere = Address(kind="unix", path="/nowhere")
        common = {"tls": tls, "driver": driver, "by_force": request.take_over}
        self._source = Endpoint(
            here or nowhere, role="source", transport=over_ssh.transport(here) if here else None, **common
        )
        self._destination = Endpoint(
            there or nowhere,
            role="destination",
            transport=over_ssh.transport(there) if there else None,
            pid=request.destination_pid,
            fence_command=request.fence_command,
            **common,
        )
        self._given = [
            end for end, where in ((self._source, here), (self._destination, there)) if where is not None
        ]
        #: Those that are marked by a controller that is gone.
        self._marked: dict[Endpoint, Driver] = {}
        for end in (self._source, self._destination):
            if end not in self._given:
                end.name = f"{end.name.split()[0]} (not given)"
                end.presume_dead()

    async def run(self, *, json_output: bool) -> Exit:
        """Look, say what will be done, ask, and do it.

        :raise QemuError: an end is driven by another controller, or is not the QEMU that a record speaks of.
        """
        if self._left is not None:
            self._left.claim()
        try:
            await self._connect()
            shown, was = await self._look()
            found = rescue.find_rescue(shown)
            if isinstance(found, RescueRefusal):
                if found.nothing_to_do and self._marked:
                    return await self._remove_marks(found, json_output=json_output)
                return self._refuse(found, json_output=json_output)
            if not self._agreed(found.says, json_output=json_output):
                return Exit.USAGE
            for end in self._given:
                await end.claim(self._name, was=was if end is self._source else None)
            source, destination = await self._views()
            again = rescue.find_rescue(replace(shown, source=source, destination=destination))
            if again != found:
                changed = RescueRefusal(why="both ends show something else than a moment ago: ask again")
                return self._refuse(changed, json_output=json_output)
            return await self._carry_out(found, was, json_output=json_output)
        finally:
            if self._left is not None:
                self._left.record.close()
            await asyncio.gather(self._source.close(), self._destination.close())

    async def _connect(self) -> None:
        for end in self._given:
            try:
                await end.connect()
            except QemuError as error:
                self._screen.line(str(error))
            if self._left is not None:
                side = "source" if end is self._source else "destination"
                await end.expect_remote_process(self._left.facts[side]["identity"])
        if len(self._given) == 2 and self._source.identity == self._destination.identity != {}:
            raise UsageError("--source and --destination are monitors of the same QEMU")

    async def _look(self) -> tuple[RescueSituation, Mapping[str, Any]]:
        """Return what both ends show once they have come to rest, and what the marks say of how things were."""
        drivers: dict[str, Driver | None] = {}
        guests: dict[str, str] = {}
        source, destination = await self._settled()
        for end, view, side in zip(
            (self._source, self._destination), (source, destination), _SIDES, strict=True
        ):
            if not view.answers:
                continue
            if other := await end.other_driver():
                raise Driven(end.name, f"it is driven by {other}: {_ITS_OWN}")
            driver = drivers[side] = await end.driver()
            if driver is not None:
                self._marked[end] = driver
            guest = await end.identify()
            guests[side] = guest.uuid or guest.name
            by = f", marked by {driver}" if driver is not None else ""
            self._screen.line(f"{end.name}: run state {view.run}, migration {view.status}{by}")
        was = driver.was if (driver := drivers.get("source")) is not None else {}
        if self._left is not None:
            was = {"runs": self._left.intent.guest_runs, "settings": self._left.facts["settings"]}
        said = self._request.run_state
        marked = {driver.migration for driver in drivers.values() if driver is not None and driver.migration}
        one_migration = len(marked) == 1 and all(drivers.get(side) is not None for side in _SIDES)
        shown = RescueSituation(
            source=source,
            destination=destination,
            runs=said == "running" if said is not None else was.get("runs"),
            run_state_said=said is not None,
            same_guest=one_migration
            or len(guests) < 2
            or (len(set(guests.values())) == 1 and "" not in guests.values()),
            word=OperatorAnswer(self._request.guest_at) if self._request.guest_at else None,
            recorded=self._left.intent if self._left is not None else None,
        )
        return shown, was

    async def _views(self) -> tuple[View, View]:
        return await asyncio.gather(self._source.observe(), self._destination.observe())

    async def _settled(self) -> tuple[View, View]:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _REST_SECONDS
        before: tuple[object, ...] = ()
        since = loop.time()
        while True:
            views = await self._views()
            now = tuple((view.process, view.answers, view.run, view.status) for view in views)
            if now != before:
                before, since = now, loop.time()
            elif loop.time() - since >= _SETTLED_SECONDS or loop.time() > give_up_at:
                return views
            await asyncio.sleep(0.1)

    def _refuse(self, found: RescueRefusal, *, json_output: bool) -> Exit:
        code = Exit.DONE if found.nothing_to_do else Exit.HELD
        if json_output:
            state = State.COMPLETED if found.nothing_to_do else State.HELD
            print(json.dumps(MigrationOutcome(id="", state=state, error=found.why).document()))
        else:
            self._screen.line(
                f"{'nothing to rescue' if found.nothing_to_do else 'nothing was done'}: {found.why}"
            )
        return code

    async def _remove_marks(self, found: RescueRefusal, *, json_output: bool) -> Exit:
        """Remove marks where there is nothing else to do: one that stays would keep every controller away for good."""
        says = tuple(
            f"{end.name}: its migration settings are put back, as far as they are known, and the mark of a controller "
            "that is gone is removed: then others may move the guest"
            for end in self._marked
        )
        self._screen.line(found.why)
        if not self._agreed(says, json_output=json_output):
            return Exit.USAGE
        for end, driver in self._marked.items():
            await end.claim(self._name)
            if end is self._source and driver.was.get("settings"):
                await end.restore(MigrationSettings(**driver.was["settings"]))
            await end.release()
        return self._refuse(found, json_output=json_output)

    def _agreed(self, says: tuple[str, ...], *, json_output: bool) -> bool:
        absent = [
            side
            for side, end in zip(_SIDES, (self._source, self._destination), strict=True)
            if end not in self._given
        ]
        lines = [f"you say, by leaving it out, that the {side}'s process is dead" for side in absent]
        for text in (*lines, *(f"{number}. {text}" for number, text in enumerate(says, 1))):
            self._screen.line(text)
        if self._request.yes:
            return True
        if sys.stdin.isatty() and not json_output:
            return input("migrator: do it? [y/N] ").strip().lower() in ("y", "yes")
        print(clean("migrator: nothing was done; add --yes to have it done"), file=sys.stderr)
        if json_output:
            result = MigrationOutcome(
                id="", state=State.HELD, error="nothing was done; add --yes to have it done"
            )
            print(json.dumps({**result.document(), "would_do": list(says)}))
        return False

    def _path(self) -> StreamPath | None:
        """Return the network between both, over which a broken postcopy goes on."""
        if self._here is None or self._there is None:
            return None
        networks = DirectGuestNetworks(self._over_ssh, self._here, self._there)
        return networks.path(
            str(self._here),
            str(self._there),
            pids=(self._source.identity.get("pid"), self._destination.identity.get("pid")),
            listen=listen_uri(self._request.listen, self._there),
        )

    async def _carry_out(self, found: RescuePlan, was: Mapping[str, Any], *, json_output: bool) -> Exit:
        settings = was.get("settings") or await self._present_settings()
        migration = MigrationDriver(
            name=self._name,
            source=self._source,
            destination=self._destination,
            policy=builtin("default"),
            listen="",
            record=self._left.record if self._left is not None else _Unrecorded(),
            on_status=self._screen.status,
            on_decision=self._screen.decision,
            path=self._path(),
        )
        facts = {"settings": settings, "abilities": {"postcopy": False, "throttle": False}}
        result = await migration.take_up(facts, found.intent)
        if result.state is State.FAILED and found.word is OperatorAnswer.SOURCE:
            result.state, result.error = State.CANCELLED, None  # as it was asked for
        at = _GUEST_AT.get(result.state)
        if at is not None:
            self._screen.line(f"rescued: the guest is at the {at}")
        else:
            self._screen.result(result)
        if json_output:
            print(json.dumps({**result.document(), "guest_at": at}))
        return Exit.DONE if at is not None else Exit.HELD

    async def _present_settings(self) -> Mapping[str, Any]:
        if self._source not in self._given:
            return {"capabilities": {}, "parameters": {}}
        settings = await self._source.settings()
        return {"capabilities": dict(settings.capabilities), "parameters": dict(settings.parameters)}
