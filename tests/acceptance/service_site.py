"""A service over real QEMUs, as these tests use it: asked over its socket, watched, broken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiomqtt
import httpx2
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from migrator.testing.guest_watch import GuestWatch
from migrator.testing.lab import GuestMachine, Habit, LabQemu, until
from migrator.testing.site import LabSite
from tests.broker import USERS, Broker
from tests.mqtt_peer import PREFIX, Got

MIB = 1 << 20
FAST, SLOW = 400 * MIB, 40 * MIB
#: Bytes a second of links in a block of :meth:`LiveSite.crawling`.
_CRAWL = 2 * MIB
#: Longer than an answer takes from a service that gets to run now and then.
ANSWER_SECONDS = 90.0
#: Of an evacuation that nothing will happen to any more.
_LIMIT_SECONDS = 60.0


class LiveSite(LabSite):
    """A site whose service is asked without the command line, which takes a second a time."""

    #: Put before the service's own command: the host that it runs on.
    prefix: Sequence[str] = ()
    #: Seconds that it is waited for; more where what else the machine has to do is not known.
    limit_seconds: float = 60.0

    def __init__(self, *names: str, refresh_interval: str = "30s", **how: Any) -> None:
        """As a :class:`LabSite`, with few looks at its hosts: what happens there is noticed without them."""
        super().__init__(*names, refresh_interval=refresh_interval, **how)

    def __enter__(self) -> Self:
        super().__enter__()
        fast = "requests_per_second = 1000\nburst = 1000\naddress_requests_per_second = 2000\n"
        self.change_config(("[http]\n", f"[http]\n{fast}"))
        self._http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(self.directory / "api.sock"), verify=False),
            base_url="http://migrator",
            timeout=ANSWER_SECONDS,
        )
        return self

    async def disconnect(self) -> None:
        """At the end."""
        await self._http.aclose()

    def serve(self, *options: str) -> subprocess.Popen[bytes]:
        """As :meth:`LabSite.serve`, on the host of :attr:`prefix`."""
        with (self.directory / "service.log").open("ab") as log:
            self.service = subprocess.Popen(
                [
                    *self.prefix,
                    sys.executable,
                    "-m",
                    "migrator",
                    "serve",
                    "--config",
                    str(self.config),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.service

    async def until_served(self, within: float | None = None) -> None:
        """Wait until it answers; a socket that was left by one that was killed does not count."""

        async def answers() -> bool:
            assert self.service is not None
            assert self.service.poll() is None, f"the service ended: {self.log()}"
            try:
                return (await self._http.get("/healthz")).status_code == 200
            except httpx2.TransportError:
                return False

        try:
            await until(answers, what="the service", within=within or self.limit_seconds)
        except TimeoutError:
            raise AssertionError(("the service does not answer", self.log()[-4000:])) from None

    async def restart(self) -> None:
        """After a kill."""
        self.kill()
        self.serve()
        await self.until_served()

    def change_config(self, *replacements: tuple[str, str]) -> None:
        """Replace text in its configuration; each has to be there."""
        text = self.config.read_text(encoding="utf-8")
        for old, new in replacements:
            assert old in text, (old, text)
            text = text.replace(old, new)
        self.config.write_text(text, encoding="utf-8")

    def change_host(self, name: str, *replacements: tuple[str, str]) -> None:
        """As :meth:`change_config`, only for one host."""
        before, mark, after = self.config.read_text(encoding="utf-8").partition(f'[[hosts]]\nname = "{name}"')
        own, following, rest = after.partition("[[hosts]]")
        for old, new in replacements:
            assert mark, name
            assert old in own, (old, own)
            own = own.replace(old, new)
        self.config.write_text(before + mark + own + following + rest, encoding="utf-8")

    # --- asking ------------------------------------------------------------------------------------------------------

    async def get(self, path: str, **query: Any) -> Any:
        """A document; asked again while the service is being restarted."""
        found: list[httpx2.Response] = []

        async def answers() -> bool:
            try:
                found.append(await self._http.get(f"/api/v1/{path}", params=query))
            except httpx2.TransportError:
                return False
            return True

        await until(answers, what=f"an answer to {path}", within=self.limit_seconds)
        assert found[0].status_code == 200, (path, found[0].text)
        return found[0].json()

    async def probe(self, path: str) -> tuple[int, str]:
        """Of ``/readyz`` or ``/metrics``: status and text."""
        got = await self._http.get(path)
        return got.status_code, got.text

    async def is_at_broker(self) -> bool:
        """Whether it has subscribed to commands."""
        _, text = await self.probe("/metrics")
        return "migrator_mqtt_connected 1.0" in text

    async def post(self, path: str, *, key: str = "", **body: Any) -> Any:
        """A command that is taken: its document."""
        status, document = await self.try_post(path, key=key, **body)
        assert status < 300, (path, status, document, self.log()[-2000:])
        return document

    async def try_post(self, path: str, *, key: str = "", **body: Any) -> tuple[int, Any]:
        """Status and document, or problem."""
        headers = {"Idempotency-Key": key} if key else {}
        got = await self._http.post(f"/api/v1/{path}", json=body, headers=headers)
        return got.status_code, got.json()

    async def events(self, subject: str = "", subject_id: str = "") -> list[Any]:
        """Everything that the journal has, oldest first, of one subject or of all."""
        about = {"subject": subject, "subject_id": subject_id} if subject else {}
        found: list[Any] = []
        after: int | None = 0
        while after is not None:
            got = await self._http.get(
                "/api/v1/events", params={"after": after, **about}, headers={"Accept": "application/json"}
            )
            assert got.status_code == 200, got.text
            found += got.json()["items"]
            after = got.json()["next"]
        return found

    async def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """As :meth:`LabSite.command`, while the loop goes on."""
        return await asyncio.to_thread(self.command, *words)

    async def known(self, guests: int) -> None:
        """Every host was looked at, and so many guests are known."""

        async def seen() -> bool:
            hosts = (await self.get("hosts"))["items"]
            return all(host["up"] for host in hosts) and len((await self.get("guests"))["items"]) >= guests

        try:
            await until(seen, what="the hosts", within=self.limit_seconds)
        except TimeoutError:
            raise AssertionError((await self.get("hosts"), await self.get("guests"), self.log())) from None

    async def migrations(self, *states: str) -> list[Any]:
        """Those in one of these states; all without."""
        items = (await self.get("migrations", limit=100))["items"]
        return [each for each in items if not states or each["state"] in states]

    @contextlib.contextmanager
    def crawling(self) -> Iterator[None]:
        """Links are so slow in this block that a guest is copied for longer than a busy machine takes to say so.

        What has to befall a migration in a phase is begun in it, and awaited: then the links are as fast as before.
        """
        before = [(host, host.speed) for host in self.hosts]
        for host, _ in before:
            host.set_speed(_CRAWL)
        try:
            yield
        finally:
            for host, speed in before:
                host.set_speed(speed)

    async def until_state(self, *states: str, of: str = "", within: float = 60.0) -> Any:
        """Wait for a migration, or the one of this id, in one of these states; see :meth:`crawling`."""
        found: list[Any] = []

        async def there() -> bool:
            found[:] = [each for each in await self.migrations(*states) if of in ("", each["id"])]
            return bool(found)

        try:
            await until(there, what=f"a migration that is {' or '.join(states)}", within=within)
        except TimeoutError:
            raise AssertionError((states, await self.migrations(), self.log()[-6000:])) from None
        return found[0]

    async def ended(self, identifier: str, state: str, within: float = _LIMIT_SECONDS) -> Any:
        """The document of an evacuation once it has ended so."""
        return await self._ended("evacuations", identifier, state, within)

    async def migration_ended(self, identifier: str, state: str, within: float = _LIMIT_SECONDS) -> Any:
        """The document of a migration once it has ended so."""
        return await self._ended("migrations", identifier, state, within)

    async def migration_over(self, identifier: str, within: float = _LIMIT_SECONDS) -> Any:
        """The document of a migration once it has ended, whichever way."""
        return await self._over("migrations", identifier, within)

    async def _ended(self, kind: str, identifier: str, state: str, within: float) -> Any:
        found = await self._over(kind, identifier, within)
        assert found["state"] == state, (self.log()[-8000:], found, await self.migrations())
        return found

    async def _over(self, kind: str, identifier: str, within: float) -> Any:
        found: dict[str, Any] = {}

        async def over() -> bool:
            found.update(await self.get(f"{kind}/{identifier}"))
            return found["ended_at"] is not None

        try:
            await until(over, what=f"the end of {identifier}", within=within)
        except TimeoutError:
            raise AssertionError((found, await self.migrations(), self.log()[-8000:])) from None
        return found

    # --- what must be true -------------------------------------------------------------------------------------------

    async def runs_once(self, machine: GuestMachine) -> LabQemu:
        """The one process in which it runs, its memory checked."""
        running = await self.running(machine)
        assert len(running) == 1, (machine.name, running, self.log()[-8000:])
        await running[0].check_memory()
        return running[0]

    async def everyone_at(self, machines: Iterable[GuestMachine], *hosts: str) -> None:
        """Each runs once, on one of these hosts, and no other process is left."""
        machines = list(machines)
        for machine in machines:
            assert self.where(await self.runs_once(machine)) in hosts, (machine.name, self.log()[-8000:])

        # The source ends after the guest was seen to run at its destination.
        def alone() -> bool:
            return len(list(self.processes())) == len(machines)

        try:
            await until(alone, what="nobody else")
        except TimeoutError:
            raise AssertionError((list(self.processes()), self.log()[-8000:])) from None

    def left_in(self, host: str) -> list[str]:
        """What is in the directories for guests of a host."""
        base = self.directory / f"run-{host}"
        return sorted(path.name for path in base.iterdir()) if base.exists() else []

    def said(self, event: str) -> list[dict[str, Any]]:
        """Lines of the service's log that begin so."""
        found = []
        for line in self.log().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if str(entry.get("event", "")).startswith(event):
                    found.append(entry)
        return found


def guest(name: str, *, region: int = 32 * MIB, speed: int = 4 * MIB, **how: Any) -> GuestMachine:
    """A small one that writes; its image is not locked, as a lock would hide that it runs twice."""
    return GuestMachine(
        name=name,
        memory_bytes=128 * MIB,
        habit=Habit(region_bytes=region, bytes_per_second=speed),
        image_locking="off",
        **how,
    )


def at_broker(broker: Broker) -> str:
    """For ``extra``: the service at this broker, as tests/mqtt_peer.py expects it."""
    return (
        '[site]\nname = "site"\ninstance = "one"\n'
        f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\nusername = "migrator"\n'
        f'password = "{USERS["migrator"]}"\noperators = ["scheduler"]\nviewers = ["other"]\n'
        'timeout = "2s"\nkeepalive = "3s"'
    )


@asynccontextmanager
async def made(
    machines: Iterable[GuestMachine], *names: str, speed: float | None = FAST, **how: Any
) -> AsyncIterator[LiveSite]:
    """A site with these guests on its first host; the service is not started yet."""
    hosts = names or ("a", "b", "c")
    with LiveSite(*hosts, bytes_per_second=speed, **how) as site:
        try:
            await asyncio.gather(*(site.boot(machine, hosts[0]) for machine in machines))
            yield site
        finally:
            await site.disconnect()


@asynccontextmanager
async def one_served(site: LiveSite, machine: GuestMachine) -> AsyncIterator[None]:
    """Start a guest on the host `a` of a site that is made already, and a service that knows it; end both."""
    try:
        await site.boot(machine, "a")
        site.serve()
        await site.until_served()
        await site.known(1)
        yield
    finally:
        await site.disconnect()
        for qemu in site.lab.qemus:
            qemu.kill()


@asynccontextmanager
async def served(
    machines: Sequence[GuestMachine],
    *names: str,
    prepare: Callable[[LiveSite], None] = lambda site: None,
    **how: Any,
) -> AsyncIterator[LiveSite]:
    """As :func:`made`, with a service that knows all of them.

    :param prepare: called before the service starts.
    """
    async with made(machines, *names, **how) as site:
        prepare(site)
        site.serve()
        await site.until_served()
        await site.known(len(machines))
        if "\n[mqtt]\n" in site.config.read_text(encoding="utf-8"):
            await until(
                site.is_at_broker, what="the service at its broker"
            )  # it keeps no command for one that was not
        yield site


class Board:
    """A client of the broker with a session that is kept: it comes back whenever the broker does."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._subscribed = asyncio.Event()
        #: All that came, in order.
        self.got: list[Got] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="board")
        async with asyncio.timeout(20):
            await self._subscribed.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 600
        while True:
            with contextlib.suppress(aiomqtt.MqttError, OSError):
                async with aiomqtt.Client(
                    "127.0.0.1",
                    self._broker.port,
                    username="dashboard",
                    password=USERS["dashboard"],
                    protocol=aiomqtt.ProtocolVersion.V5,
                    identifier="board",
                    clean_start=False,
                    properties=properties,
                    timeout=5,
                ) as client:
                    try:
                        for what in ("state", "decision"):
                            await client.subscribe(f"{PREFIX}/+/+/{what}", qos=1)
                        self._subscribed.set()
                        async for message in client.messages:
                            self._note(message)
                    finally:
                        # What has come is acknowledged, and will not come again: not even where the broker went before
                        # it answered a subscription.
                        while len(client.messages):
                            self._note(await anext(client.messages))
            await asyncio.sleep(0.05)

    def _note(self, message: aiomqtt.Message) -> None:
        assert isinstance(message.payload, bytes)
        topic, retain = message.topic.value, bool(message.retain)
        self.got.append(Got(topic, message.payload, retain, message.properties))

    def about(self, subject: str, identifier: str) -> list[Any]:
        """Its states and decisions in the order in which they came. What came twice, or was retained, is left out."""
        ends = tuple(f"{subject}/{identifier}/{what}" for what in ("state", "decision"))
        found, newest = [], 0
        for each in self.got:
            if (
                each.topic.endswith(ends)
                and each.payload
                and not each.retain
                and each.json["event_id"] > newest
            ):
                newest = each.json["event_id"]
                found.append(each.json)
        return found

    def last_state(self, subject: str, identifier: str) -> Any:
        """As a dashboard would show it; ``None`` without one."""
        for each in reversed(self.got):
            if each.topic.endswith(f"{subject}/{identifier}/state"):
                return each.json["body"] if each.payload else None
        return None


class Witness:
    """Looks again and again whether somebody runs twice; at the end of its block it says so."""

    def __init__(self, site: LiveSite, machines: Sequence[GuestMachine]) -> None:
        self._watch = GuestWatch(site, machines)
        #: Looks that saw a guest run.
        self.looks = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look(), name="witness")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled() and (error := self._task.exception()):
            raise error
        await self._watch.settle()
        if kind is None:
            assert self._watch.doubled == []
            assert self.looks > 0

    async def _look(self) -> None:
        while True:
            ran = self._watch.look()
            self._watch.judge(ran)
            self.looks += sum(map(bool, ran.values()))
            await asyncio.sleep(0.05)


async def eventually(
    probe: Callable[[], Awaitable[object]], what: str, site: LiveSite, within: float = 60
) -> None:
    """As ``until``, with the service's log when it does not come true."""
    try:
        await until(probe, what=what, within=within)
    except TimeoutError:
        found = [await site.get(kind) for kind in ("migrations", "evacuations", "hosts")]
        raise AssertionError((what, *found, site.log()[-8000:])) from None


def freeze(pid: int) -> None:
    """SIGSTOP."""
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """SIGCONT."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def small_disk(directory: Path, size: str = "1m") -> Any:
    """A tmpfs of that size at a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
