"""Commands and their replies at a real broker: who may, what is refused, what comes twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from migrator.api.commands import Command
from migrator.api.events import Subject
from migrator.testing.lab import until
from migrator.testing.simulated_service import SimulatedService
from tests.broker import USERS, Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_peer import PREFIX, Peer, peer, settings
from tests.mqtt_service import FAST, SLOW, a_site, serving, set_link


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker
        print(broker.log.read_text(errors="replace")[-5000:])  # noqa: T201 - pytest shows it with a failed test


@pytest.fixture
def site(tmp_path: Path) -> SimulatedService:
    """Nothing that is begun there ends while a test lasts."""
    return a_site(tmp_path / "service", link=SLOW)


async def answer(client: Peer, identifier: str, count: int = 1) -> Any:
    """The last of so many replies."""
    await until(lambda: len(client.replies(identifier)) >= count, what=f"reply {count} to {identifier}")
    assert len(client.replies(identifier)) == count
    return client.replies(identifier)[-1]


async def test_command_is_carried_out_and_answered(broker: Broker, site: SimulatedService) -> None:
    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:
        await scheduler.command("migrate", id="c1", guest="web")
        reply = await answer(scheduler, "c1")
    assert (reply["kind"], reply["id"], reply["verb"]) == ("accepted", "c1", "migrate")
    assert (reply["subject"], reply["body"]["guest_name"]) == ("migration", "web")
    assert reply["subject_id"] == reply["body"]["id"]
    events = await site.journal.events(subject="migration", subject_id=reply["subject_id"])
    # As far as the journal had them at that moment, which may be before the first.
    told = [each["sequence"] for each in events if each["event_id"] <= reply["event_id"]]
    assert reply["sequence"] == max(told, default=0)
    assert datetime.fromisoformat(reply["time"]).tzinfo is not None
    ((command, caller, _),) = service.begun
    assert (command.verb, caller.user, caller.role) == ("migrate", "scheduler", "operator")
    assert caller.interface == "mqtt"
    assert caller.origin.startswith(f"{PREFIX}/command/scheduler/migrate")
    assert service.counted == [("mqtt", "migrate", "accepted")]


async def test_same_id_again_does_nothing_and_gets_the_same_answer(
    broker: Broker, site: SimulatedService
) -> None:
    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:
        await scheduler.command("migrate", id="c1", guest="web")
        first = await answer(scheduler, "c1")
        await scheduler.command("migrate", id="c1", guest="web")
        again = await answer(scheduler, "c1", 2)
        await scheduler.command("migrate", id="c1", guest="another")
        other = await answer(scheduler, "c1", 3)
    # How far the events had come is that of the moment.
    moment = {"time": 0, "event_id": 0, "sequence": 0}
    assert {**again, **moment} == {**first, **moment}
    assert (other["kind"], other["code"]) == ("refused", "id-reused")
    assert len(service.begun) == 1


async def test_what_the_controller_refuses_is_told(broker: Broker, site: SimulatedService) -> None:
    async with serving(site, settings(broker)), peer(broker) as scheduler:
        await scheduler.command("migrate", id="c0", guest="web")
        begun = await answer(scheduler, "c0")
        await scheduler.command("migrate", id="c1", guest="web")
        reply = await answer(scheduler, "c1")
    assert (reply["kind"], reply["code"]) == ("refused", "conflict")
    assert reply["message"].endswith(f"already: migration {begun['subject_id']}")
    assert reply["body"] is None


async def test_expired_command_is_refused(broker: Broker, site: SimulatedService) -> None:
    long_ago = (datetime.now(UTC) - timedelta(minutes=11)).isoformat()
    recently = (datetime.now(UTC) - timedelta(minutes=9)).isoformat()
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:
        await scheduler.command("migrate", id="old", guest="g", sent_at=long_ago)
        await scheduler.command("migrate", id="past", guest="g", expires_at=past)
        assert (await answer(scheduler, "old"))["code"] == "expired"
        assert (await answer(scheduler, "past"))["code"] == "expired"
        assert service.begun == []
        await scheduler.command("migrate", id="recent", guest="web", sent_at=recently)
        await scheduler.command("migrate", id="longer", guest="db", sent_at=long_ago, expires_at=later)
        assert (await answer(scheduler, "recent"))["kind"] == "accepted"
        assert (await answer(scheduler, "longer"))["kind"] == "accepted"


@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
async def test_retained_command_is_never_carried_out(
    broker: Broker, site: SimulatedService, protocol: Any
) -> None:
    async with peer(broker) as scheduler:
        await scheduler.command("migrate", id="before", guest="g", retain=True)
        async with serving(site, settings(broker, protocol=protocol)) as service:
            if protocol == "3.1.1":  # version 5 is not given what was retained before
                assert (await answer(scheduler, "before"))["code"] == "invalid"
            else:
                await scheduler.command("migrate", id="live", guest="g", retain=True)
                reply = await answer(scheduler, "live")
                assert (reply["kind"], reply["code"]) == ("refused", "invalid")
                assert "retain" in reply["message"]
            await scheduler.command("plan", id="last", host="a")
            await answer(scheduler, "last")
            assert [command.verb for command, _, _ in service.begun] == ["plan"]


BAD: list[tuple[str, str, Any, str, str | None]] = [
    ("not JSON", "migrate", b"{", "not JSON", None),
    ("not an object", "migrate", b"[1]", "not a JSON object", None),
    ("nested beyond sense", "migrate", b"[" * 50_000, "not JSON", None),
    ("not UTF-8", "migrate", b'{"id": "x\xff"}', "not JSON", None),
    ("too large", "migrate", b'{"id": "x", "guest": "' + b"g" * 70_000 + b'"}', "at most 65536 bytes", None),
    ("without an id", "migrate", {"guest": "g"}, "id: is missing", None),
    (
        "an id that is no name",
        "migrate",
        {"id": "../../x", "guest": "g"},
        "id: is not a name: 1 to 64 of",
        None,
    ),
    ("an id with a wildcard", "migrate", {"id": "#", "guest": "g"}, "id: ", None),
    (
        "without sent_at",
        "migrate",
        {"id": "x", "guest": "g", "sent_at": None},
        "sent_at: is missing",
        "x",
    ),
    (
        "sent_at without a zone",
        "migrate",
        {"id": "x", "sent_at": "2026-01-01T00:00:00"},
        "sent_at: must be a time with its zone",
        "x",
    ),
    ("from the future", "migrate", {"id": "x", "sent_at": "2999-01-01T00:00:00Z"}, "sent_at is 2999", "x"),
    ("an unknown verb", "destroy", {"id": "x"}, "no command 'destroy'", "x"),
    (
        "an unknown field",
        "migrate",
        {"id": "x", "guest": "g", "by": 1},
        "by: there is no such field (there are guest, group, to, policy, accept)",
        "x",
    ),
    ("a missing field", "migrate", {"id": "x"}, "the command takes either guest or group", "x"),
    (
        "two wrong fields",
        "migrate",
        {"id": "x", "guest": "", "to": "a b"},
        "guest: must not be empty; to: is not a name: 1 to 64 of A-Z a-z 0-9 . _ -",
        "x",
    ),
]


@pytest.mark.parametrize(
    ("verb", "payload", "complaint", "identifier"), [each[1:] for each in BAD], ids=[each[0] for each in BAD]
)
async def test_what_is_no_command_is_refused_and_answered_where_that_can_be(
    broker: Broker, site: SimulatedService, verb: str, payload: Any, complaint: str, identifier: str | None
) -> None:
    if isinstance(payload, dict):
        payload = {"sent_at": datetime.now(UTC).isoformat(), **payload}
        payload = json.dumps({k: v for k, v in payload.items() if v is not None}).encode()
    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:
        await scheduler.client.publish(f"{PREFIX}/command/scheduler/{verb}", payload, qos=1)
        if identifier is not None:
            reply = await answer(scheduler, identifier)
            assert (reply["kind"], reply["code"]) == ("refused", "invalid")
            assert complaint in reply["message"]
        await until(lambda: service.counted, what="counted")
        # Where there is no id, a response topic of the sender's own serves.
        properties = {"response": f"{PREFIX}/reply/scheduler/here"}
        await _raw(scheduler, verb, payload, **properties)
        reply = await answer(scheduler, "here")
        assert complaint in reply["message"]
    assert service.begun == []
    assert {result for _, _, result in service.counted} == {"refused"}
    assert service.counted[0][1] == (verb if verb != "destroy" else "unknown")


async def _raw(scheduler: Peer, verb: str, payload: bytes, *, response: str) -> None:
    from paho.mqtt.packettypes import PacketTypes  # noqa: PLC0415 - only here
    from paho.mqtt.properties import Properties  # noqa: PLC0415

    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = response
    await scheduler.client.publish(
        f"{PREFIX}/command/scheduler/{verb}", payload, qos=1, properties=properties
    )


async def test_reply_goes_to_the_callers_own_response_topic_with_its_correlation(
    broker: Broker, site: SimulatedService
) -> None:
    async with serving(site, settings(broker)), peer(broker) as scheduler:
        await scheduler.command(
            "plan", id="c1", host="a", response=f"{PREFIX}/reply/scheduler/inbox/7", correlation=b"\x00\xff"
        )
        await until(lambda: scheduler.on("/inbox/7"), what="a reply there")
    (got,) = scheduler.on("/inbox/7")
    assert got.json["kind"] == "accepted"
    assert got.properties.CorrelationData == b"\x00\xff"
    assert scheduler.replies("c1") == []


@pytest.mark.parametrize(
    "response",
    ["migrator/v1/site/reply/other/c1", "migrator/v1/site/reply/scheduler/", "migrator/v1/site/service/one"],
)
async def test_another_response_topic_is_refused(
    broker: Broker, site: SimulatedService, response: str
) -> None:
    async with (
        serving(site, settings(broker)) as service,
        peer(broker) as scheduler,
        peer(broker, "other") as other,
    ):
        await scheduler.command("migrate", id="c1", guest="g", response=response)
        reply = await answer(scheduler, "c1")
        assert (reply["code"], service.begun) == ("invalid", [])
        assert "response topic must lie below migrator/v1/site/reply/scheduler/" in reply["message"]
        assert [got for got in other.got if "/reply/" in got.topic] == []


async def test_hosts_are_cordoned_scheduled_and_told_so(broker: Broker, site: SimulatedService) -> None:
    async with serving(site, settings(broker)), peer(broker) as scheduler:
        await scheduler.command("resolve", id="c0", migration="m", guest_at="source")
        assert (await answer(scheduler, "c0"))["code"] == "forbidden"
    configured = settings(broker, resolvers=("scheduler",))
    async with serving(site, configured), peer(broker) as scheduler:
        await scheduler.command("cordon", id="c1", host="b")
        assert (await answer(scheduler, "c1"))["body"]["cordoned"]
        await until(
            lambda: any(got.json["body"]["cordoned"] for got in scheduler.on("host/b/state")),
            what="the host's state",
        )
        times: dict[str, Any] = {"at": "2:30", "until": "5:00", "time_zone": "Europe/Berlin"}
        await scheduler.command("evacuate", id="c2", host="a", **times)
        body = (await answer(scheduler, "c2"))["body"]
        assert body["state"] == "scheduled"
        topic = f"evacuation/{body['id']}/state"
        await until(lambda: scheduler.on(topic), what="the window")
        assert scheduler.on(topic)[-1].json["body"]["starts_at"] == body["starts_at"]
        # Who may resolve gets as far as the migration.
        await scheduler.command("resolve", id="c3", migration="m", guest_at="source")
        assert (await answer(scheduler, "c3"))["code"] == "not-found"


async def test_user_who_is_limited_to_a_host_is_refused_about_others(
    broker: Broker, site: SimulatedService
) -> None:
    configured = settings(broker, hosts={"scheduler": ("a",)})
    async with serving(site, configured) as service, peer(broker) as scheduler:
        await scheduler.command("evacuate", id="c1", host="b")
        reply = await answer(scheduler, "c1")
        assert (reply["code"], service.begun) == ("forbidden", [])
        assert reply["message"] == "scheduler is limited to a: no evacuate for b"
        await scheduler.command("plan", id="c2", host="a")
        assert (await answer(scheduler, "c2"))["kind"] == "accepted"


async def test_role_decides(broker: Broker, site: SimulatedService) -> None:
    configured = settings(broker, operators=frozenset(), viewers=frozenset({"other"}))
    async with serving(site, configured) as service, peer(broker, "other") as viewer:
        await viewer.command("plan", id="look", host="a")
        assert (await answer(viewer, "look"))["kind"] == "accepted"
        await viewer.command("evacuate", id="act", host="a")
        assert (await answer(viewer, "act"))["code"] == "forbidden"
        async with peer(broker) as stranger:
            await stranger.command("plan", id="look", host="a")
            assert (await answer(stranger, "look"))["code"] == "forbidden"
    assert [command.verb for command, _, _ in service.begun] == ["plan"]


async def test_commands_do_not_wait_for_a_slow_one(broker: Broker, site: SimulatedService) -> None:
    free = asyncio.Event()

    async def slow(command: Command) -> None:
        if command.verb == "check":
            await free.wait()

    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:
        service.before = slow
        await scheduler.command("check", id="slow", guest="web", to="b")
        await scheduler.command("plan", id="quick", host="a")
        await answer(scheduler, "quick")
        assert scheduler.replies("slow") == []
        free.set()
        await answer(scheduler, "slow")


async def test_client_of_version_3_1_1_takes_part(broker: Broker, site: SimulatedService) -> None:
    async with (
        serving(site, settings(broker)),
        peer(broker, protocol=aiomqtt.ProtocolVersion.V311) as scheduler,
    ):
        await scheduler.command("migrate", id="c1", guest="web")
        assert (await answer(scheduler, "c1"))["kind"] == "accepted"


async def test_service_of_version_3_1_1_takes_part(broker: Broker, site: SimulatedService) -> None:
    async with serving(site, settings(broker, protocol="3.1.1")), peer(broker) as scheduler:
        await scheduler.command("migrate", id="c1", guest="web")
        assert (await answer(scheduler, "c1"))["kind"] == "accepted"


async def test_reply_that_is_too_large_goes_without_its_document(
    broker: Broker, site: SimulatedService
) -> None:
    async with (
        serving(site, settings(broker, max_reply_size=600)) as service,
        peer(broker) as scheduler,
    ):
        await scheduler.command("migrate", id="c1", guest="web")
        reply = await answer(scheduler, "c1")
        (begun,) = service.queries.active_migrations()
    assert len(begun.model_dump_json()) > 600
    assert (reply["kind"], reply["subject_id"], reply["body"]) == ("accepted", begun.id, None)


# outcomes


async def test_outcome_follows_when_what_was_begun_has_ended(broker: Broker, site: SimulatedService) -> None:
    set_link(site, FAST)
    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:
        await scheduler.command("migrate", id="c1", guest="web")
        outcome = await answer(scheduler, "c1", 2)
        begun = scheduler.replies("c1")[0]
        assert begun["kind"] == "accepted"
        identifier = begun["subject_id"]
        assert (outcome["kind"], outcome["verb"], outcome["subject_id"]) == ("outcome", "migrate", identifier)
        last = await service.queries.last_state(Subject.MIGRATION, identifier)
        told = json.loads(last.text)["body"]
        assert {name: outcome["body"][name] for name in told} == told
        assert (outcome["body"]["state"], outcome["sequence"]) == ("completed", last.sequence)
        # From now on the same id gets that.
        await scheduler.command("migrate", id="c1", guest="web")
        again = await answer(scheduler, "c1", 3)
        assert (again["kind"], again["body"]["state"]) == ("outcome", "completed")
        assert len(service.begun) == 1
    assert site.site.running("web") == ["b"]


async def test_outcome_follows_the_reply_where_all_was_over_before_it(
    broker: Broker, site: SimulatedService
) -> None:
    set_link(site, FAST)
    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:
        pause = site.journal.pause

        async def until_all_is_over(call: str) -> None:
            if call == "answer_command":
                await until(lambda: not service.queries.active_migrations(), what="the end")
            await pause(call)

        site.journal.pause = until_all_is_over
        await scheduler.command("migrate", id="c1", guest="web")
        outcome = await answer(scheduler, "c1", 2)
    assert [each["kind"] for each in scheduler.replies("c1")] == ["accepted", "outcome"]
    assert outcome["body"]["state"] == "completed"


@pytest.mark.parametrize("ends", ["after the restart", "while nobody is there"])
async def test_outcome_after_a_restart_goes_where_the_journal_says(
    broker: Broker, site: SimulatedService, ends: str
) -> None:
    site.site.hosts["a"].shut_off_guests = 1
    async with peer(broker) as scheduler:
        async with serving(site, settings(broker)):
            await scheduler.command(
                "evacuate",
                id="c1",
                host="a",
                response=f"{PREFIX}/reply/scheduler/inbox",
                correlation=b"\x00 7",
            )
            await until(lambda: scheduler.on("/inbox"), what="the reply")
        identifier = scheduler.on("/inbox")[0].json["subject_id"]
        set_link(site, FAST)
        if ends == "while nobody is there":
            async with site.running() as engine:
                await until(lambda: not engine.queries.active_evacuations(), what="the end")
        async with serving(site, settings(broker)):
            await until(lambda: len(scheduler.on("/inbox")) == 2, what="the outcome")

            async def settled() -> bool:
                behind = await site.journal.command_behind("evacuation", identifier)
                return behind is not None and bool(behind["settled"])

            await until(settled, what="the journal knows that it was told")
        async with serving(site, settings(broker)):
            await scheduler.command("plan", id="c2", host="a")
            await answer(scheduler, "c2")
    assert len(scheduler.on("/inbox")) == 2, "it is told once"
    got = scheduler.on("/inbox")[1]
    assert (got.json["kind"], got.json["id"], got.json["verb"]) == ("outcome", "c1", "evacuate")
    assert (got.json["body"]["state"], got.json["body"]["guests_shut_off"]) == ("completed", 1)
    assert {guest["guest"] for guest in got.json["body"]["guests"]} == set(site.site.machines)
    assert got.properties.CorrelationData == b"\x00 7"


async def test_session_that_another_takes_is_noticed_and_the_next_commands_come(
    broker: Broker, site: SimulatedService
) -> None:
    kept: list[str] = []
    taken: list[None] = []
    own = f"migrator-site-one-{'a' * 32}"
    fields: dict[str, Any] = {"client_id": own, "keep_client_id": kept.append}

    async def take() -> None:
        """A mere reader that has learned the id, and comes again whenever it is thrown out."""
        while True:
            with contextlib.suppress(aiomqtt.MqttError):
                async with aiomqtt.Client(
                    "127.0.0.1",
                    broker.port,
                    username="dashboard",
                    password=USERS["dashboard"],
                    identifier=own,
                    protocol=aiomqtt.ProtocolVersion.V5,
                    clean_start=False,
                ) as reader:
                    async for _ in reader.messages:
                        pass

    async with (
        serving(site, settings(broker), **fields, taken=lambda: taken.append(None)) as service,
        peer(broker) as scheduler,
    ):
        taking = asyncio.create_task(take())
        try:
            await until(lambda: len(taken) == 1, what="notice of it", within=60)
            await until(lambda: service.connected, what="another session")
            await scheduler.command("migrate", id="c1", guest="web")
            assert (await answer(scheduler, "c1"))["kind"] == "accepted"
        finally:
            taking.cancel()
            await asyncio.wait({taking})
    assert len(taken) == len(kept) == 1
    assert kept[0] != own


async def test_operator_does_not_wait_behind_the_plans_of_a_viewer(
    broker: Broker, site: SimulatedService
) -> None:
    async with serving(site, settings(broker, max_waiting_commands=8)) as service:
        going_on = asyncio.Event()

        async def slow(command: Command) -> None:
            if command.verb == "plan":
                await going_on.wait()

        service.before = slow
        async with peer(broker, "other") as viewer, peer(broker) as scheduler:
            for number in range(20):
                await viewer.command("plan", id=f"p{number}", host="a")
            await scheduler.command("migrate", id="c1", guest="web")
            # Not one plan has been made, nor can be.
            assert (await answer(scheduler, "c1"))["kind"] == "accepted"
            refused = [each for number in range(20) for each in viewer.replies(f"p{number}")]
            assert {(each["kind"], each["code"]) for each in refused} == {("refused", "not-now")}
            assert "wait already" in refused[0]["message"]
            going_on.set()
            await until(
                lambda: all(viewer.replies(f"p{number}") for number in range(20)), what="an answer to each"
            )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"id": "a b"}, "id: is not a name"),
        ({"id": 5}, "id: must be text"),
        ({"id": None}, "id: must be text"),
        ({"id": "x" * 70_000}, "at most 65536 bytes"),
        ({"id": "c1", "filler": "x" * 1_000_000}, "at most 65536 bytes"),
    ],
    ids=["blank", "number", "null", "long", "large"],
)
async def test_command_whose_id_cannot_be_answered_to_is_answered_all_the_same(
    broker: Broker, site: SimulatedService, body: dict[str, Any], words: str
) -> None:
    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:
        sent = {"sent_at": datetime.now(UTC).isoformat(), "host": "a", **body}
        await scheduler.client.publish(f"{PREFIX}/command/scheduler/plan", json.dumps(sent), qos=1)
        reply = await answer(scheduler, "unknown")
        assert (reply["kind"], reply["code"]) == ("refused", "invalid")
        assert words in reply["message"]
        assert service.begun == []


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({"sent_at": 1_800_000_000}, "sent_at: must be a time with its zone"),
        ({"sent_at": "1800000000.5"}, "sent_at: must be a time with its zone"),
        ({"expires_at": 4_000_000_000}, "expires_at: must be a time with its zone"),
        ({"expires_at": "9999-12-31T23:59:59Z"}, "a command is good for"),
        ({"deadline": 1_800_000_000}, "deadline: must be a time with its zone"),
    ],
)
async def test_time_is_one_with_a_zone_and_within_reason(
    broker: Broker, site: SimulatedService, times: dict[str, Any], words: str
) -> None:
    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:
        sent = {"id": "c1", "sent_at": datetime.now(UTC).isoformat(), "host": "a", **times}
        await scheduler.client.publish(f"{PREFIX}/command/scheduler/evacuate", json.dumps(sent), qos=1)
        reply = await answer(scheduler, "c1")
        assert (reply["kind"], reply["code"]) == ("refused", "invalid")
        assert words in reply["message"]
        assert service.begun == []
