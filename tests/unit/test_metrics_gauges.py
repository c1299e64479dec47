"""What is shown of the service's state at a scrape."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from migrator.api.evacuation_documents import EvacuationGuest
from migrator.core.drain.states import GuestStanding
from migrator.core.inventory import HostState
from migrator.core.model import State
from migrator.metrics import catalogue
from tests.documents import a_guest, a_host, a_migration, an_evacuation
from tests.metered import Service


@pytest.fixture
def service() -> Service:
    return Service()


async def test_series_of_a_migration_go_with_it(service: Service) -> None:
    service.queries.put(a_migration("m1"))
    service.queries.decide("m1", "throttle")
    with_it = await service.values()
    mine = {name for name, found in with_it.items() if any(("migration", "m1") in labels for labels in found)}
    assert len(mine) == len(catalogue.MIGRATIONS)
    service.queries.end("m1", State.COMPLETED)
    left = await service.values()
    assert not any(("migration", "m1") in labels for found in left.values() for labels in found)


async def test_what_is_not_known_is_not_shown(service: Service) -> None:
    service.queries.put(
        a_migration("m1", forecast=None, dirty_rate_bytes_per_second=None, expected_downtime_seconds=None)
    )
    service.broker = None
    values = await service.values()
    for name in ("migration_eta_seconds", "migration_dirty_rate_bytes_per_second", "mqtt_connected"):
        assert f"migrator_{name}" not in values
    assert values["migrator_migration_progress_ratio"]


async def test_links_carry_the_sum_of_their_migrations(service: Service) -> None:
    for host in ("host-1", "host-2", "host-3"):
        service.queries.hosts_by_name[host] = a_host(host)
    service.queries.put(a_migration("m1", bandwidth_bytes_per_second=100.0))
    service.queries.put(a_migration("m2", destination="host-3", bandwidth_bytes_per_second=11.0))
    service.queries.put(a_migration("m3", state=State.HELD, bandwidth_bytes_per_second=5000.0))
    use = (await service.values())["migrator_host_link_bytes_per_second"]
    assert {(dict(labels)["host"], dict(labels)["direction"]): value for labels, value in use.items()} == {
        ("host-1", "out"): 111,
        ("host-1", "in"): 0,
        ("host-2", "out"): 0,
        ("host-2", "in"): 100,
        ("host-3", "out"): 0,
        ("host-3", "in"): 11,
    }


async def test_hosts_guests_and_evacuations(service: Service) -> None:
    queries = service.queries
    queries.hosts_by_name["host-1"] = a_host(state=HostState.DRAINING, up=False, guests=7, guests_shut_off=2)
    queries.guests_by_key["g"] = a_guest("g", movable=False)
    stuck = EvacuationGuest(guest="g", standing=GuestStanding.SET_ASIDE)
    fine = EvacuationGuest(guest="h", standing=GuestStanding.MOVED)
    deadline = datetime(2030, 1, 1, tzinfo=UTC)
    queries.put_evacuation(an_evacuation(deadline=deadline, at_risk=True, guests=[stuck, fine]))
    assert await service.value("host_state", host="host-1", state="draining") == 1
    assert await service.value("host_state", host="host-1", state="active") == 0
    assert await service.value("host_up", host="host-1") == 0
    assert await service.value("host_guests", host="host-1") == 7
    assert await service.value("host_guests_shut_off", host="host-1") == 2
    assert await service.value("guest_migratable", guest="g", host="host-1") == 0
    both = {"evacuation": "e1", "host": "host-1"}
    assert await service.value("evacuation_at_risk", **both) == 1
    assert await service.value("evacuation_guests_left", **both) == 3
    assert await service.value("evacuation_deadline_timestamp_seconds", **both) == deadline.timestamp()
    [only] = (await service.values())["migrator_evacuation_guest_stuck"]
    assert dict(only) == {**both, "guest": "g", "standing": "set-aside"}
    queries.hosts_by_name["host-1"] = a_host(guests_shut_off=2, libvirt_error="no answer")
    assert await service.value("host_guests_shut_off", host="host-1") is None


async def test_the_dirty_rate_of_a_guest_is_that_of_its_migration_while_there_is_one(
    service: Service,
) -> None:
    service.queries.guests_by_key["g"] = a_guest("g", dirty_rate_bytes_per_second=None)
    shown = {"guest": "g", "host": "host-1"}
    assert await service.value("guest_dirty_rate_bytes_per_second", **shown) is None
    service.queries.put(a_migration("m1", guest="g", dirty_rate_bytes_per_second=7.0))
    assert await service.value("guest_dirty_rate_bytes_per_second", **shown) == 7


async def test_states_of_the_service(service: Service) -> None:
    service.queries.put(a_migration("m1", state=State.QUEUED))
    service.queries.put(a_migration("m2"))
    service.queries.put(a_migration("m3", state=State.HELD))
    assert await service.value("migrations_recovering") == 0
    service.queries.put(a_migration("m4", state=State.RECOVERING))
    assert await service.value("migrations_recovering") == 1
    service.queries.said = ["the journal is full"]
    service.broker = False
    values = await service.values()
    assert [
        values[f"migrator_{name}"][()]
        for name in ("migrations_active", "migrations_held", "queue_depth", "complaints", "mqtt_connected")
    ] == [2, 1, 1, 1, 0]
    assert values["migrator_build_info"] == {(("version", "1.2.3"),): 1}


async def test_a_failure_is_shown_until_success_or_for_a_day(service: Service) -> None:
    labels = {"guest": "guest-of-m1", "host": "host-1"}

    async def shown() -> float | None:
        return await service.value("guest_last_failure_timestamp_seconds", **labels)

    async def fail() -> None:
        service.queries.put(a_migration(f"m{service.clock.seconds}", guest="guest-of-m1"))
        service.queries.end(f"m{service.clock.seconds}", State.FAILED)

    await fail()
    assert await shown() == 1000
    service.clock.seconds += 86_401
    assert await shown() is None
    await fail()
    assert await shown() == service.clock.seconds
    service.queries.put(a_migration("good", guest="guest-of-m1"))
    service.queries.end("good", State.COMPLETED, downtime_seconds=0.1)
    assert await shown() is None
    after = {"guest": "guest-of-m1", "host": "host-2"}
    assert await service.value("guest_last_downtime_seconds", **after) == 0.1
    service.clock.seconds += 3601
    assert await service.value("guest_last_downtime_seconds", **after) is None


async def test_failures_before_the_start_are_read_from_the_journal(service: Service) -> None:
    now = datetime.now(UTC)
    service.clock.seconds = now.timestamp()
    one = {"ended_at": now - timedelta(hours=1), "state": State.FAILED}
    service.queries.journal = [
        a_migration("m4", guest="mended", **{**one, "state": State.COMPLETED}),
        a_migration("m3", guest="mended", **one),
        a_migration("m2", guest="failed", **one),
        a_migration("m1", guest="long ago", **{**one, "ended_at": now - timedelta(days=2)}),
    ]
    async with service.metrics:
        found = (await service.values())["migrator_guest_last_failure_timestamp_seconds"]
    assert [dict(labels)["guest"] for labels in found] == ["failed"]


async def test_a_broken_journal_does_not_keep_metrics_from_starting(service: Service) -> None:
    service.queries.broken_journal = True
    async with service.metrics:
        assert (await service.values())["migrator_build_info"]


async def test_guests_beyond_the_most_are_counted_and_the_stuck_ones_shown(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migrator.metrics.gauges.MOST_GUESTS", 5)
    for number in range(20):
        service.queries.guests_by_key[str(number)] = a_guest(str(number), movable=number != 17)
    values = await service.values()
    assert values["migrator_guests_not_shown"][()] == 15
    assert len(values["migrator_guest_info"]) == 5
    assert values["migrator_guest_migratable"][("guest", "17"), ("host", "host-1")] == 0


async def test_a_guest_that_is_listed_twice_is_shown_once(service: Service) -> None:
    service.queries.guests_by_key.update(a=a_guest("same"), b=a_guest("same", movable=False))
    assert len((await service.values())["migrator_guest_migratable"]) == 1


async def test_narrow_paths_are_shown_by_both_of_their_hosts(service: Service) -> None:
    service.queries.hosts_by_name["host-1"] = a_host("host-1", slowest_paths={"host-2": 7.1e6})
    paths = (await service.values())["migrator_path_bytes_per_second"]
    assert [(dict(labels), value) for labels, value in paths.items()] == [
        ({"host": "host-1", "target": "host-2"}, 7.1e6)
    ]
