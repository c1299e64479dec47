"""What a collector of traces is told of real migrations is what happened, and hinders none of them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import until
from tests.acceptance.service_site import MIB, SLOW, LiveSite, at_broker, guest, served
from tests.acceptance.test_service_mqtt import until_reply
from tests.broker import Broker, mosquitto
from tests.collector import Collector, Got
from tests.conftest import missing
from tests.mqtt_peer import peer
from tests.ports import free_port

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{CALLER}-01"
STATE = "vendor=t61rcWkgMzE"

#: As the lifecycle allows it; some states are too short to be seen.
_WAY = ("queued", "preparing", "precopy", "switchover", "postcopy", "finishing")


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


def traced(endpoint: str, more: str = "") -> Callable[[LiveSite], None]:
    def prepare(site: LiveSite) -> None:
        site.change_config(("[http]\n", f'[traces]\nendpoint = "{endpoint}"\n{more}\n[http]\n'))

    return prepare


async def ask(site: LiveSite, path: str, headers: dict[str, str], **body: Any) -> Any:
    got = await site._http.post(f"/api/v1/{path}", json=body, headers=headers)
    assert got.status_code == 202, got.text
    return got.json()


async def the_span(collector: Collector, name: str, site: LiveSite, **attributes: Any) -> Got:
    try:
        await until(lambda: bool(collector.named(name, **attributes)), what=f"the span {name}", within=15)
    except TimeoutError:
        raise AssertionError((name, attributes, collector.spans, site.log()[-4000:])) from None
    (found,) = collector.named(name, **attributes)
    return found


def at(text: str) -> int:
    """Nanoseconds since the epoch."""
    since = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def phases_are_whole(collector: Collector, root: Got, document: Any, events: list[Any]) -> list[str]:
    """In order, without gaps, inside their root, and as long as the document says. Their names."""
    assert (root.began, root.ended) == (at(document["created_at"]), at(document["ended_at"]))
    phases = collector.below(root)
    names = [each.name for each in phases]
    states = [each["body"]["state"] for each in events if each["kind"] == "state"]
    assert names == states[:-1], (names, states)
    assert [phases[0].began, *(each.ended for each in phases)] == [
        *(each.began for each in phases),
        root.ended,
    ]
    assert sum(each.seconds for each in phases) == pytest.approx(root.seconds)
    # What it took, as the document has it, is what lies between the first command and the guest's arrival.
    # A state is told a moment after it is one, on a busy machine.
    copied = sum(each.seconds for each in phases if each.name in ("precopy", "switchover", "postcopy"))
    assert copied <= document["duration_seconds"] + 0.5
    assert document["duration_seconds"] <= sum(each.seconds for each in phases if each.name != "queued") + 0.5
    told = [(name, facts["migrator.reason"]) for each in phases for name, _, facts in each.events]
    assert told == [(each["action"], each["reason"]) for each in document["decisions"]]
    for each in phases:
        assert each.trace_id == root.trace_id
        for _, time_of_event, _ in each.events:
            assert each.began <= time_of_event <= each.ended
    return names


async def test_traces_of_callers_by_http_and_mqtt_agree_with_the_documents(
    collector: Collector, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = [guest("web"), guest("db", region=48 * MIB, speed=30 * MIB)]
    headers = tmp_path / "headers"
    headers.write_text("# for the collector\nX-Key: very-secret\n")
    prepare = traced(collector.endpoint, f'headers_file = "{headers}"')
    async with (
        served(machines, prepare=prepare, extra=at_broker(broker)) as site,
        peer(broker) as scheduler,
    ):
        # By HTTP: a migration. Its parent is the caller's span.
        begun = await ask(
            site,
            "migrations",
            {"traceparent": GIVEN, "tracestate": STATE},
            guest=str(machines[0].uuid),
            to="b",
        )
        assert (begun["traceparent"], begun["tracestate"]) == (GIVEN, STATE)
        document = await site.migration_ended(begun["id"], "completed")
        root = await the_span(collector, "migrate", site, migration__id=begun["id"])
        assert (root.trace_id, root.parent_id, root.state) == (TRACE, CALLER, STATE)
        names = phases_are_whole(collector, root, document, await site.events("migration", begun["id"]))
        assert [_WAY.index(name) for name in names] == sorted(_WAY.index(name) for name in names)
        assert {"queued", "preparing", "precopy"} <= set(names)
        assert root.error == ""
        expected = {
            "guest.id": "guest",
            "guest.name": "guest_name",
            "source.host": "source",
            "destination.host": "destination",
            "policy": "policy",
            "mode": "mode",
            "result": "state",
            "downtime_seconds": "downtime_seconds",
            "max_downtime_seconds": "max_downtime_seconds",
            "duration_seconds": "duration_seconds",
            "transferred_bytes": "transferred_bytes",
        }
        for attribute, field in expected.items():
            assert root.attributes[f"migrator.{attribute}"] == document[field], attribute
        assert root.resource["service.name"] == "migrator"
        assert root.resource["service.namespace"] == "site"
        assert all(each["x-key"] == "very-secret" for each in collector.requests)
        assert "very-secret" not in site.log()
        assert {each["trace_id"] for each in site.said("command") if "trace_id" in each} == {TRACE}
        lines = [each for each in site.said("") if each.get("migration") == begun["id"]]
        assert [each for each in lines if each["event"] == "decision"]
        assert {each.get("trace_id") for each in lines} == {TRACE}

        # By MQTT: an evacuation. Its migrations are its children.
        other = TRACE[::-1]
        properties = [("tracestate", STATE), ("traceparent", f"00-{other}-{CALLER}-01")]
        await scheduler.command("evacuate", id="night", user_properties=properties, host="a")
        outcome = await until_reply(scheduler, "night", "outcome")
        whole = await the_span(collector, "evacuate", site, evacuation__id=outcome["subject_id"])
        assert (whole.trace_id, whole.parent_id, whole.state) == (other, CALLER, STATE)
        assert (whole.began, whole.ended) == (
            at(outcome["body"]["created_at"]),
            at(outcome["body"]["ended_at"]),
        )
        assert whole.attributes["migrator.result"] == "completed"
        assert whole.attributes["migrator.evacuation.guests_moved"] == 1
        (child,) = collector.below(whole)
        document = await site.get(f"migrations/{child.attributes['migrator.migration.id']}")
        assert (child.name, document["evacuation"]) == ("migrate", whole.attributes["migrator.evacuation.id"])
        assert whole.began <= child.began <= child.ended <= whole.ended
        phases_are_whole(collector, child, document, await site.events("migration", document["id"]))

        # A trace of its own, and one that its caller does not record; what is no traceparent is ignored.
        host = document["destination"]
        there, back = ("c", host) if host == "b" else ("b", host)
        unseen = f"00-{'7' * 32}-{CALLER}-00"
        wrong = await ask(site, "migrations", {"traceparent": "00-xyz"}, guest="db", to=there)
        assert wrong["traceparent"] is None
        await site.migration_ended(wrong["id"], "completed")
        hidden = await ask(site, "migrations", {"traceparent": unseen}, guest="db", to=back)
        await site.migration_ended(hidden["id"], "completed")
        own = await the_span(collector, "migrate", site, migration__id=wrong["id"])
        assert own.parent_id == ""
        assert own.trace_id not in (TRACE, other)
        # The command line has it from its surroundings; what waits is sent when the service stops.
        monkeypatch.setenv("TRACEPARENT", f"00-{'8' * 32}-{CALLER}-01")
        done = await site.cli("migrate", "db", "--to", there, "--wait", "--json")
        assert done.returncode == 0, done
        assert await asyncio.to_thread(site.stop) == 0
        (last,) = [each for each in collector.named("migrate") if each.trace_id == "8" * 32]
        assert last.parent_id == CALLER
    assert [each for each in collector.spans if each.trace_id == "7" * 32] == []
    assert len({each.span_id for each in collector.spans}) == len(collector.spans)


@pytest.mark.matrix
async def test_killed_in_the_middle_and_started_again_it_is_the_same_trace(collector: Collector) -> None:
    machines = [guest("vm", region=64 * MIB, speed=30 * MIB)]
    async with served(machines, speed=SLOW, prepare=traced(collector.endpoint)) as site:
        with site.crawling():
            run = await ask(site, "hosts/a/evacuate", {"traceparent": GIVEN})
            await site.until_state("precopy")
        await site.restart()
        migration = (await site.migrations())[0]
        await site.ended(run["id"], "completed")
        whole = await the_span(collector, "evacuate", site)
        assert (whole.trace_id, whole.parent_id) == (TRACE, CALLER)
        (child,) = collector.below(whole)
        document = await site.get(f"migrations/{migration['id']}")
        assert child.attributes["migrator.migration.id"] == document["id"]
        names = [each.name for each in collector.below(child)]
        assert names[:3] == ["queued", "preparing", "precopy"], names
        assert names == list(dict.fromkeys(names))
        phases = collector.below(child)
        assert sum(each.seconds for each in phases) == pytest.approx(child.seconds)
        assert any(name == "take-up" for each in phases for name, _, _ in each.events)
        assert len(collector.named("migrate")) == 1


@pytest.mark.matrix
async def test_failure_is_an_error_with_its_reason(collector: Collector) -> None:
    machines = [guest("vm", region=64 * MIB)]
    # So slow that its first round lasts for seconds: what is killed later may leave more to a person.
    async with served(machines, speed=10 * MIB, prepare=traced(collector.endpoint)) as site:
        with site.crawling():
            begun = await ask(site, "migrations", {"traceparent": GIVEN}, guest="vm", to="b")
            await site.until_state("precopy")
            (destination,) = [each for each in site.instances(machines[0]) if site.where(each) == "b"]
            os.kill(destination.pid, signal.SIGKILL)
        document = await site.migration_ended(begun["id"], "failed")
        root = await the_span(collector, "migrate", site)
        assert root.error == document["error"]
        assert root.attributes["error.type"] == "failed"
        phases = collector.below(root)
        assert [bool(each.error) for each in phases] == [False] * (len(phases) - 1) + [True]


@pytest.mark.matrix
@pytest.mark.parametrize(
    "how",
    ["silent", "nobody", "503", "401"],
)
async def test_collector_that_is_away_hinders_nothing(how: str) -> None:
    machines = [guest("one"), guest("two")]
    with Collector(how=how if how != "nobody" else "well") as collector:
        endpoint = collector.endpoint if how != "nobody" else f"http://127.0.0.1:{free_port()}"
        async with served(machines, prepare=traced(endpoint, 'timeout = "2s"')) as site:
            run = await site.post("hosts/a/evacuate")
            document = await site.ended(run["id"], "completed")
            await site.everyone_at(machines, "b", "c")
            took = datetime.fromisoformat(document["ended_at"]) - datetime.fromisoformat(
                document["created_at"]
            )
            assert took.total_seconds() < 40

            async def dropped() -> bool:
                _, text = await site.probe("/metrics")
                return 'migrator_trace_spans_total{result="dropped"} 0.0' not in text

            await until(dropped, what="dropped spans", within=15)
            _, text = await site.probe("/metrics")
            assert 'migrator_trace_spans_total{result="sent"} 0.0' in text
            assert len(site.said("traces are not taken")) == 1, site.log()
            assert "Traceback" not in site.log()
            lag = [line for line in text.splitlines() if line.startswith("migrator_event_loop_lag_seconds ")]
            assert float(lag[0].split()[1]) < 3.0
            await site.post("hosts/a/restore")
            began = time.monotonic()
            assert site.service is not None
            site.service.terminate()
            await asyncio.to_thread(site.service.wait, 30)
            assert site.service.returncode == 0, site.log()
            assert time.monotonic() - began < 25
