"""Callers that are limited to some hosts: what each command, and each look, is answered by what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator import host_scope
from migrator.api import received
from migrator.api.commands import COMMANDS, Command, Evacuate, Migrate, Role, Roll
from migrator.api.replies import Refusal, Reply
from migrator.api.requests import Caller, Envelope
from migrator.core.inventory import Guest
from migrator.core.saved_guest import SurveyedFile
from migrator.engine.commands.saved_list import SavedList
from migrator.errors import UsageError
from migrator.http.limited_queries import LimitedQueries
from migrator.testing.simulated_service import RunningEngine, SimulatedService

pytestmark = pytest.mark.looptime

#: By name: what a caller is limited to, and which hosts that reaches.
SCOPES: dict[str, tuple[tuple[str, ...] | None, set[str]]] = {
    "all": (None, {"h-1", "h-2", "h-3"}),
    "h-1": (("h-1",), {"h-1"}),
    "h-2": (("h-2",), {"h-2"}),
    "both by name": (("h-1", "h-2"), {"h-1", "h-2"}),
    "both by pattern": (("h-[12]",), {"h-1", "h-2"}),
    "none there": (("h-9", "other-*"), set()),
}


@dataclass(frozen=True)
class Case:
    """A command, and the hosts that it is about."""

    verb: str
    body: dict[str, Any]
    about: set[str]


CASES = [
    Case("evacuate", {"host": "h-1"}, {"h-1"}),
    Case("evacuate", {"host": "h-1", "at": "+1h"}, {"h-1"}),
    Case("restore", {"host": "h-1"}, {"h-1"}),
    Case("activate", {"host": "h-1"}, {"h-1"}),
    Case("cordon", {"host": "h-1"}, {"h-1"}),
    Case("uncordon", {"host": "h-1"}, {"h-1"}),
    Case("plan", {"host": "h-1"}, {"h-1"}),
    Case("roll", {"hosts": ["h-1"]}, {"h-1"}),
    Case("roll", {"hosts": ["h-1", "h-2"]}, {"h-1", "h-2"}),
    Case("migrate", {"guest": "vm-1"}, {"h-1"}),
    Case("migrate", {"guest": "vm-1", "to": "h-3"}, {"h-1"}),
    Case("migrate", {"guest": "h-1/vm-1"}, {"h-1"}),
    Case("migrate", {"group": "pair"}, {"h-1", "h-2"}),
    Case("migrate", {"group": "alone", "to": "h-3"}, {"h-1"}),
    Case("check", {"guest": "vm-1", "to": "h-3"}, {"h-1"}),
    Case("save", {"guest": "vm-1", "file": "/srv/vm-1.state"}, {"h-1"}),
    Case("load", {"file": "/srv/nothing.state", "to": "h-1"}, {"h-1"}),
    Case("discard", {"host": "h-1", "file": "/srv/nothing.state"}, {"h-1"}),
    Case("saved", {"host": "h-1"}, {"h-1"}),
    Case("saved", {}, set()),
    Case("policies", {}, set()),
    Case("hooks", {}, set()),
    Case("cancel", {"target": "moving"}, {"h-1"}),
    Case("cancel", {"target": "emptying"}, {"h-2"}),
    Case("cancel", {"target": "rolling"}, {"h-1", "h-2"}),
    Case("postcopy", {"migration": "moving"}, {"h-1"}),
    Case("resolve", {"migration": "moving", "guest_at": "source"}, {"h-1"}),
]


def test_every_command_has_its_case() -> None:
    assert {case.verb for case in CASES} == set(COMMANDS)


def test_what_a_command_is_about_is_said_by_each_or_nobody_limited_may_give_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Shuffle(Command):
        verb = "shuffle"

    monkeypatch.setitem(COMMANDS, "shuffle", Shuffle)
    envelope = Envelope(verb="shuffle", body={}, caller=caller(("*",)))
    with pytest.raises(Refusal, match="limited to") as refused:
        received.parse(envelope)
    assert refused.value.code == "forbidden"


def caller(hosts: tuple[str, ...] | None, role: Role = Role.OPERATOR) -> Caller:
    return Caller(user="drain", role=role, interface="http", hosts=hosts)


GROUPS = {"vm-2": "pair", "other": "pair", "one": "alone"}


class Site(SimulatedService):
    """Three hosts; ``vm-1``, ``vm-2``, ``one`` and ``moving`` are on the first, ``other`` on the second."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        for host in ("h-1", "h-2", "h-3"):
            self.site.add_host(host)
        for name in ("vm-1", "vm-2", "one"):
            self.site.add_guest(name, host="h-1")
        self.site.add_guest("moving", host="h-1", memory_bytes=64 << 30)
        self.site.add_guest("other", host="h-2", memory_bytes=16 << 30)

    def configured(self, guest: Guest) -> Guest:
        return replace(super().configured(guest), group=GROUPS.get(guest.name, ""))


async def begun(running: RunningEngine, what: object) -> str:
    """Begin that which a command names; return its id."""
    match what:
        case "moving":
            return str((await running.ask(Migrate(guest="moving", to="h-3"))).id)
        case "emptying":
            return str((await running.ask(Evacuate(host="h-2"))).id)
        case "rolling":
            return str((await running.ask(Roll(hosts=["h-1", "h-2"]))).id)
    return str(what)


def state(running: RunningEngine) -> Any:
    registry = running.engine.registry
    return (
        {each.id: each.ended for each in registry.migrations.values()},
        {each.id: (each.state, each.closing) for each in registry.evacuations.values()},
        [(each.name, each.state, each.cordoned) for each in running.engine.inventory.hosts()],
    )


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.verb} {' '.join(map(str, case.body.values()))}"
)
async def test_a_command_is_refused_exactly_where_it_is_about_another_host(
    case: Case, tmp_path: Path
) -> None:
    async with Site(tmp_path).running() as running:
        body = dict(case.body)
        for name in {"target", "migration"} & set(body):
            body[name] = await begun(running, body[name])

        async def answer(scope: str) -> Reply:
            hosts, _ = SCOPES[scope]
            return await running.dispatcher.execute(Envelope(verb=case.verb, body=body, caller=caller(hosts)))

        before = state(running)
        beyond = [scope for scope, (_, reached) in SCOPES.items() if not case.about <= reached]
        assert beyond or not case.about
        for scope in beyond:
            reply = await answer(scope)
            assert (reply.kind, reply.code) == ("refused", "forbidden"), scope
            assert str(reply.message).startswith("drain is limited to ")
            assert "\n" not in str(reply.message)
            assert state(running) == before, "nothing was begun"
        for scope in set(SCOPES) - set(beyond):
            assert (await answer(scope)).code != "forbidden", scope


async def test_what_is_elsewhere_and_what_is_nowhere_are_refused_alike(tmp_path: Path) -> None:
    async with Site(tmp_path).running() as running:
        moving = await begun(running, "moving")
        for verb, field, there in (
            ("migrate", "guest", "vm-1"),
            ("cancel", "target", moving),
            ("postcopy", "migration", moving),
            ("migrate", "group", "alone"),
        ):
            said = [
                await running.dispatcher.execute(
                    Envelope(verb=verb, body={field: each}, caller=caller(("h-2",)))
                )
                for each in (there, "no-such")
            ]
            assert said[0].code == said[1].code == "forbidden"
            assert str(said[0].message).replace(there, "X") == str(said[1].message).replace("no-such", "X")


async def test_a_host_that_is_no_more_is_refused_without_naming_those_beyond_the_limits(
    tmp_path: Path,
) -> None:
    """Its token may outlive it, and a pattern fits what was never there."""
    bodies: list[tuple[str, dict[str, Any]]] = [
        *((verb, {"host": "h-10"}) for verb in ("evacuate", "restore", "activate", "cordon", "uncordon")),
        *((verb, {"host": "h-10"}) for verb in ("plan", "saved")),
        ("evacuate", {"host": "h-10", "at": "+1h"}),
        ("roll", {"hosts": ["h-1", "h-10"]}),
        ("load", {"file": "/srv/vm-1.state", "to": "h-10"}),
        ("discard", {"file": "/srv/vm-1.state", "host": "h-10"}),
        ("migrate", {"guest": "vm-1", "to": "h-10"}),
        ("migrate", {"group": "alone", "to": "h-10"}),
        ("check", {"guest": "vm-1", "to": "h-10"}),
    ]
    async with Site(tmp_path).running() as running:
        for verb, body in bodies:
            for hosts, there in ((("h-1", "h-1?"), "h-1"), (("h-10",), "none")):
                envelope = Envelope(verb=verb, body=body, caller=caller(hosts))
                reply = await running.dispatcher.execute(envelope)
                assert reply.kind == "refused", verb
                said = str(reply.message)
                assert not {"h-2", "h-3"} & set(said.replace(",", " ").split()), said
                if reply.code == "not-found":
                    assert said.endswith(f"there is {there}")
                else:
                    assert (reply.code, there) == ("forbidden", "none"), said


class SavedOnFirst:
    """One guest that was saved on the first host, into a file that every host sees; which of them were asked."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    async def unfinished(self, _: str) -> list[dict[str, Any]]:
        return [{"id": "m1", "guest": "saved", "host": "h-1", "file": "/srv/saved.state", "saved_at": 1.0}]

    async def find(self, *_: str) -> dict[str, Any]:
        return {"state": "completed"}

    async def page(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return []

    async def survey(self, host: str, paths: Sequence[str]) -> dict[str, SurveyedFile]:
        self.asked.add(host)
        return {path: SurveyedFile(size=1) for path in paths}


async def test_whether_a_saved_guest_can_be_loaded_is_asked_on_its_hosts_alone(tmp_path: Path) -> None:
    async with Site(tmp_path).running() as running:
        for hosts, told in ((("h-1",), {"h-1"}), (("h-[12]",), {"h-1", "h-2"}), (None, SCOPES["all"][1])):
            there: Any = SavedOnFirst()
            engine = running.engine
            writer: Any = SimpleNamespace(journal=there)
            listed = SavedList(
                registry=engine.registry, inventory=engine.inventory, journal_writer=writer, saved=there
            )
            (one,) = (await listed.read(None, caller(hosts))).items
            assert {each.host for each in one.hosts} == there.asked == told


async def test_a_guest_that_comes_to_another_host_while_its_move_waits_is_left_alone(tmp_path: Path) -> None:
    """Whoever may move it from here may not move it from there."""
    async with Site(tmp_path).running() as running:
        machine = next(each for each in running.engine.inventory.guests() if each.name == "vm-1")
        lookups = running.engine.handlers._migrations._lookups
        found = await lookups.guest("vm-1", caller(("h-1",)))
        assert (await running.ask(Migrate(guest=machine.key, to="h-2"))).id
        await running.settled()
        await running.engine.inventory.look_at_all()
        with pytest.raises(Refusal, match="limited to h-1"):
            lookups.guest_again(found, "vm-1", caller(("h-1",)))


async def test_looks_have_what_is_on_its_hosts(tmp_path: Path) -> None:
    async with Site(tmp_path).running() as running:
        away = await running.ask(Migrate(guest="vm-1", to="h-3"))
        await running.settled()
        emptying = await running.ask(Evacuate(host="h-2"))
        await running.engine.inventory.look_at_all()
        queries = LimitedQueries(running.queries, caller(("h-1",)))

        assert [each.host for each in queries.hosts()] == ["h-1"]
        assert {each.name for each in queries.guests()} == {"vm-2", "one", "moving"}
        assert [each.id for each in await queries.migrations(limit=9)] == [away.id], "it came from there"
        assert [
            each.id
            for each in await LimitedQueries(running.queries, caller(("h-[23]",))).evacuations(limit=9)
        ] == [emptying.id]
        assert not await queries.evacuations(limit=9)
        assert not queries.active_evacuations()
        seen = [await queries.shows(each) for each in (await running.queries.events(limit=999)).items]
        assert any(seen)
        assert not all(seen)

        for asked in (
            lambda: queries.host("h-2"),
            lambda: queries.guests("h-2"),
            lambda: queries.guest("other"),
            lambda: queries.guest("nobody"),
        ):
            with pytest.raises(Refusal, match="limited to h-1"):
                asked()
        for waited in (queries.evacuation(emptying.id), queries.refresh("h-2"), queries.dirty_rates("other")):
            with pytest.raises(Refusal, match="limited to h-1"):
                await waited


async def test_events_of_other_hosts_are_not_among_those_told(tmp_path: Path) -> None:
    async with Site(tmp_path).running() as running:
        await running.ask(Evacuate(host="h-2"))
        await running.ask(Migrate(guest="vm-1", to="h-3"))
        await running.settled()
        every = await running.queries.event_texts(limit=999)
        own = await LimitedQueries(running.queries, caller(("h-1",))).event_texts(limit=999)
        assert own.last == every.last, "the next page begins where this one ends, whatever was left out"
        told = "".join(text for _, text in own.items)
        assert "vm-1" in told
        assert "other" not in told
        assert 0 < len(own.items) < len(every.items)


@pytest.mark.parametrize(
    "patterns", [[], [""], ["h 1"], ["h-1/vm"], ["x" * 65], [f"h-{n}" for n in range(65)]]
)
def test_a_limit_that_can_be_none_is_refused(patterns: list[str]) -> None:
    with pytest.raises(UsageError):
        host_scope.checked(patterns)


def test_who_is_limited_reaches_nothing_that_has_no_host() -> None:
    assert not caller(("*",)).covers("")
    assert not caller(("*",)).covers()
    assert caller(None).covers()
    assert caller(("h-1",)).covers("h-1")
    assert not caller(("h-1",)).covers("h-1", "h-10")
