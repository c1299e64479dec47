"""Whose connections to a host's monitors are ended, and whose are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from migrator.site.monitor_clients import MonitorClients


class Host:
    """A host that knows each controller's connections by its process."""

    name = "h1"

    def __init__(self, pid: int) -> None:
        self.pid = pid

    async def client_identity(self) -> Mapping[str, Any]:
        return {"pid": self.pid, "start_time": 1, "boot_id": "b"}


class Controllers:
    """The controllers that share a journal."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        #: By name: the token of a lease that holds; and of the last one, that may be over.
        self.leases: dict[str, int] = {}
        self.last_tokens: dict[str, int] = {}
        #: Processes whose connections were ended.
        self.ended: list[int] = []

    def clients(self, name: str, seen: Mapping[str, int]) -> MonitorClients:
        """Return what a controller keeps that saw these leases last."""

        async def read(prefix: str) -> Mapping[str, str]:
            return {key: text for key, text in self.kept.items() if key.startswith(prefix)}

        async def keep(key: str, text: str) -> None:
            self.kept[key] = text

        async def now() -> Mapping[str, int]:
            return dict(self.leases)

        async def disconnect(access: Any, patterns: Sequence[str], client: Mapping[str, Any]) -> int:
            self.ended.append(int(client["pid"]))
            return 1

        return MonitorClients(
            name=name,
            read=read,
            keep=keep,
            live=lambda: seen,
            live_now=now,
            last_tokens=lambda: self.last_tokens,
            disconnect=disconnect,
        )


async def test_a_controller_that_has_just_come_keeps_its_connections_though_it_was_not_seen_yet() -> None:
    controllers = Controllers()
    controllers.leases = {"one": 1, "two": 7}
    await controllers.clients("two", {"two": 7}).prepare(Host(20), [])
    await controllers.clients("one", {"one": 1}).prepare(Host(10), [])
    assert controllers.ended == []


async def test_a_controller_that_came_again_under_a_new_lease_keeps_its_connections() -> None:
    controllers = Controllers()
    controllers.leases = {"one": 1, "two": 8}
    await controllers.clients("two", {"two": 8}).prepare(Host(21), [])
    await controllers.clients("one", {"one": 1, "two": 7}).prepare(Host(10), [])
    assert controllers.ended == []


async def test_connections_of_one_whose_lease_is_over_are_ended_and_may_be_ended_again() -> None:
    controllers = Controllers()
    controllers.leases = {"one": 1, "two": 7}
    await controllers.clients("two", {"two": 7}).prepare(Host(20), [])
    del controllers.leases["two"]
    clients = controllers.clients("one", {"one": 1})
    await clients.prepare(Host(10), [])
    assert controllers.ended == [20]
    assert clients.may_hold("h1")
    await clients.disconnect_again(Host(10), [])
    assert controllers.ended == [20, 20]


async def test_connections_of_one_that_came_and_went_between_two_migrations_are_ended() -> None:
    controllers = Controllers()
    controllers.leases = {"one": 1}
    clients = controllers.clients("one", {"one": 1})
    await clients.prepare(Host(10), [])
    controllers.leases["two"] = controllers.last_tokens["two"] = 7
    await controllers.clients("two", {"one": 1, "two": 7}).prepare(Host(20), [])
    del controllers.leases["two"]
    await clients.prepare(Host(10), [])
    assert controllers.ended == [20]
