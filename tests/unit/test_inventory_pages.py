"""Lists of hosts and guests as an operator searches, filters and sorts them."""

from __future__ import annotations

from typing import Any

import pytest

from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.api.inventory_pages import GuestQuery, HostQuery, guest_list, host_list
from migrator.core.inventory import HostState


def guest(name: str, host: str = "a", **fields: Any) -> GuestDocument:
    return GuestDocument(
        **{"guest": f"key-{name}", "name": name, "host": host, "run_state": "running", **fields}
    )


GUESTS = [
    guest("Mail", memory_bytes=3, dirty_rate_bytes_per_second=5.0),
    guest("db-1", run_state="paused", managed_by="libvirt", memory_bytes=1),
    guest("db-2", migration="m1", memory_bytes=2, dirty_rate_bytes_per_second=9.0),
    guest("web", "b", managed_by="systemd:web.service", movable=False, obstacle="libvirt", memory_bytes=2),
    guest("lost", "b", run_state="lost-contact", monitored=False, duplicate=True),
]
HOSTS = [
    HostDocument(host="a", state=HostState.ACTIVE, up=True, guests=3, labels={"rack": "r1"}, cpus=8),
    HostDocument(
        host="b", state=HostState.DRAINING, up=False, guests=2, guests_not_movable=1, error="No route"
    ),
    HostDocument(
        host="c", state=HostState.ACTIVE, up=True, cordoned=True, cpus=16, link_bytes_per_second=1e9
    ),
]


def names(**query: Any) -> list[str]:
    return [each.name for each in guest_list(GUESTS, GuestQuery(**query)).items]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["Mail", "db-1", "db-2", "web", "lost"]),
        ({"search": "DB"}, ["db-1", "db-2"]),
        ({"search": "2 db"}, ["db-2"]),
        ({"search": "key-mail"}, ["Mail"]),
        ({"search": "nobody"}, []),
        pytest.param({"states": frozenset({"paused", "lost-contact"})}, ["db-1", "lost"], id="two states"),
        ({"managed_by": "libvirt"}, ["db-1"]),
        ({"managed_by": "systemd"}, ["web"]),
        ({"managed_by": "systemd:web.service"}, ["web"]),
        ({"managed_by": "-"}, ["Mail", "db-2", "lost"]),
        ({"movable": False}, ["web"]),
        ({"moving": True}, ["db-2"]),
        ({"moving": False, "search": "db"}, ["db-1"]),
        ({"duplicate": True}, ["lost"]),
        ({"monitored": False}, ["lost"]),
    ],
    ids=str,
)
def test_guests_are_found_by_words_and_by_what_they_are(query: dict[str, Any], found: list[str]) -> None:
    assert names(**query) == found


@pytest.mark.parametrize(
    ("sort", "found"),
    [
        ("-host", ["lost", "web", "db-2", "db-1", "Mail"]),
        ("memory_bytes", ["lost", "db-1", "db-2", "web", "Mail"]),
        ("-memory_bytes", ["Mail", "db-2", "web", "db-1", "lost"]),
        ("dirty_rate_bytes_per_second", ["Mail", "db-2", "db-1", "web", "lost"]),
        ("-dirty_rate_bytes_per_second", ["db-2", "Mail", "db-1", "web", "lost"]),
    ],
)
def test_guests_are_sorted_with_the_unknown_last_and_equals_as_they_were(sort: Any, found: list[str]) -> None:
    assert names(sort=sort) == found


def test_pages_follow_each_other_to_the_last_guest() -> None:
    seen, offset = list[str](), 0
    while True:
        page = guest_list(GUESTS, GuestQuery(limit=2, offset=offset, sort="name"))
        assert page.total == len(GUESTS)
        seen += [each.name for each in page.items]
        if page.next is None:
            break
        offset = page.next
    assert seen == sorted(each.name for each in GUESTS)
    beyond = guest_list(GUESTS, GuestQuery(limit=2, offset=100))
    assert (beyond.items, beyond.next) == ([], None)


def test_counts_are_of_what_was_searched_for_whichever_state_is_chosen() -> None:
    page = guest_list(GUESTS, GuestQuery(search="db", states=frozenset({"paused"}), limit=0))
    assert (page.items, page.total, page.next) == ([], 1, None)
    assert page.counts.model_dump() == {
        "run_state": {"paused": 1, "running": 1},
        "managed_by": {"": 1, "libvirt": 1},
        "not_movable": 0,
        "moving": 1,
        "duplicate": 0,
        "unmonitored": 0,
    }


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"search": "RACK=r1"}, "a"),
        ({"search": "route"}, "b"),
        ({"states": frozenset({HostState.ACTIVE})}, "ac"),
        ({"up": False}, "b"),
        ({"cordoned": True}, "c"),
        ({"sort": "-guests"}, "abc"),
        ({"sort": "-cpus"}, "cab"),
        ({"sort": "link_bytes_per_second", "limit": 1}, "c"),
    ],
    ids=str,
)
def test_hosts_are_found_and_sorted(query: dict[str, Any], found: str) -> None:
    assert [each.host for each in host_list(HOSTS, HostQuery(**query)).items] == list(found)


def test_hosts_are_counted_by_state_with_their_guests() -> None:
    assert host_list(HOSTS, HostQuery(limit=0)).counts.model_dump() == {
        "state": {"active": 2, "draining": 1},
        "down": 1,
        "cordoned": 1,
        "guests": 5,
        "guests_not_movable": 1,
    }
