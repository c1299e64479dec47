"""What anybody who can open a connection may do, before it is known who it is."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from migrator.http.admission import Admission
from migrator.http.app import create_app
from migrator.http.limits import Limits
from migrator.http.listeners import Tcp
from migrator.http.server import Servers
from migrator.testing.lab import until
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from tests.http_service import OPERATOR, MemoryTokens, hold_commands, two_hosts

_HEALTHY = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
_CLOSING = _HEALTHY.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    return two_hosts(tmp_path / "records")


@pytest.fixture
async def running(service: SimulatedService) -> AsyncIterator[RunningEngine]:
    async with service.running() as running:
        yield running


@pytest.fixture
async def app(running: RunningEngine) -> FastAPI:
    limits = Limits(hosts=frozenset({"migrator.example", "*.site.example"}))
    return create_app(running.dispatcher, running.queries, MemoryTokens(), limits=limits)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's context, and its certificate for who wants to believe it."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(["openssl", "req", *kind, *name, *files], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


def port(servers: Servers) -> int:
    return int(servers.addresses[0].rpartition(":")[2])


def come(servers: Servers, address: str) -> socket.socket:
    """A connection from one of this machine's loopback addresses."""
    return socket.create_connection(("127.0.0.1", port(servers)), timeout=10, source_address=(address, 0))


async def said(connection: socket.socket, sent: bytes = b"") -> bytes:
    """All that comes until the other side closes it."""

    def ask() -> bytes:
        found = b""
        with contextlib.suppress(ConnectionResetError):
            connection.sendall(sent)
            while chunk := connection.recv(65536):
                found += chunk
        return found

    async with asyncio.timeout(30):
        return await asyncio.to_thread(ask)


OVER_TLS = pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])


async def answered(servers: Servers, address: str, certificate: Path | None) -> bool:
    """Whether who comes from there is let in and gets an answer.

    :param certificate: the server's, where it is spoken to over TLS.
    """
    context = None if certificate is None else _trusting(certificate)
    name = None if certificate is None else "localhost"
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port(servers), local_addr=(address, 0), ssl=context, server_hostname=name
        )
        try:
            writer.write(_CLOSING)
            return b" 200 " in await reader.read()
        finally:
            writer.transport.abort()
    except OSError:  # with every error of TLS among them
        return False


@OVER_TLS
async def test_who_says_nothing_is_counted_from_the_beginning(
    app: FastAPI, tls: tuple[ssl.SSLContext, Path], over_tls: bool
) -> None:
    bounds = Admission(connections=8, connections_per_address=4, head_seconds=600, handshake_seconds=600)
    certificate = tls[1] if over_tls else None
    async with Servers(app, tcp=Tcp(tls=tls[0] if over_tls else None), admission=bounds) as servers:
        silents = [come(servers, "127.0.0.2") for _ in range(4)]
        # The kernel accepts for us; what is one too many is closed at once, perhaps while it still connects.
        assert not await answered(servers, "127.0.0.2", certificate)
        assert await answered(servers, "127.0.0.3", certificate)  # whose place nobody has taken
        for one in silents:
            one.close()
        await until(lambda: answered(servers, "127.0.0.2", certificate), what="a place that is free again")


@pytest.mark.parametrize(
    "silent", [b"", b"\x16\x03\x01", b"GET / HT"], ids=["nothing", "half a hello", "half a head"]
)
@OVER_TLS
async def test_who_says_nothing_is_let_go(
    app: FastAPI, tls: tuple[ssl.SSLContext, Path], over_tls: bool, silent: bytes
) -> None:
    bounds = Admission(connections=8, connections_per_address=4, head_seconds=0.2, handshake_seconds=0.2)
    async with Servers(app, tcp=Tcp(tls=tls[0] if over_tls else None), admission=bounds) as servers:
        silents = [come(servers, "127.0.0.2") for _ in range(4)]
        for answer in await asyncio.gather(*(said(one, silent) for one in silents)):
            assert not answer or b" 400 " in answer or over_tls
        # A busy machine may need longer than these bounds for a handshake: then it is another's turn.
        certificate = tls[1] if over_tls else None
        await until(lambda: answered(servers, "127.0.0.2", certificate), what="a place that is free again")
        for one in silents:
            one.close()


def _trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


async def test_more_requests_than_may_be_begun_wait_and_none_is_lost(app: FastAPI) -> None:
    bounds = Admission(address_requests_per_second=200.0, burst=5)
    async with Servers(app, tcp=Tcp(), admission=bounds) as servers:
        connections = [come(servers, "127.0.0.2") for _ in range(8)]
        # Pipelined: nothing of what waits is read twice or left out.
        sent = _HEALTHY * 9 + _CLOSING
        answers = await asyncio.gather(*(said(one, sent) for one in connections))
        assert [answer.count(b" 200 OK") for answer in answers] == [10] * 8
        for one in connections:
            one.close()


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421, b"unknown-host"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", 421, b"unknown-host"),
        (b"GET /healthz HTTP/1.1\r\nHost: \r\n\r\n", 421, b"unknown-host"),
        (
            b"POST /api/v1/plans HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}",
            400,
            b"ambiguous-length",
        ),
        (
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 50_000 + b"\r\n\r\n",
            431,
            b"head-too-large",
        ),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431, b"head-too-large"),
        (b"nonsense\r\n\r\n", 400, b"bad-request"),
    ],
    ids=["other name", "longer name", "no name", "two lengths", "head in one piece", "long path", "no HTTP"],
)
async def test_wrong_request_is_answered_with_a_typed_problem_and_its_connection_closed(
    app: FastAPI, head: bytes, status: int, code: bytes
) -> None:
    async with Servers(app, tcp=Tcp()) as servers:
        with come(servers, "127.0.0.1") as one:
            answer = await said(one, head)
    first, _, body = answer.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in first
    assert b'"type":"urn:migrator:problem:%s"' % code in body
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:9",
        "127.0.0.1:1",
        "[::1]:8443",
        "10.1.2.3",
        "migrator.example",
        "a.site.example",
        "Migrator.Example.",
    ],
)
async def test_names_that_are_known_are_answered(app: FastAPI, host: str) -> None:
    async with (
        Servers(app, tcp=Tcp()) as servers,
        httpx2.AsyncClient(base_url=servers.addresses[0], verify=False) as client,
    ):
        assert (await client.get("/healthz", headers={"Host": host})).status_code == 200


async def test_head_is_get_without_the_content_everywhere(app: FastAPI) -> None:
    async with (
        Servers(app, tcp=Tcp()) as servers,
        httpx2.AsyncClient(base_url=servers.addresses[0], verify=False) as client,
    ):
        client.headers["Authorization"] = f"Bearer {OPERATOR}"
        for path in ("/healthz", "/openapi.json", "/", "/api/v1/hosts", "/api/v1/hosts/nowhere", "/nothing"):
            head, got = await client.head(path), await client.get(path)
            assert (head.status_code, head.content) == (got.status_code, b""), path
            assert head.headers["content-type"] == got.headers["content-type"]
        # One that would never end.
        head = await client.head("/api/v1/events", timeout=10)
        assert (head.status_code, head.content) == (200, b"")
        assert (await client.get("/healthz")).status_code == 200


async def test_browsers_are_told_to_come_by_tls_only_where_they_can(
    app: FastAPI, tls: tuple[ssl.SSLContext, Path]
) -> None:
    for context, told in ((tls[0], True), (None, False)):
        async with (
            Servers(app, tcp=Tcp(tls=context)) as servers,
            httpx2.AsyncClient(verify=_trusting(tls[1]), base_url=servers.addresses[0]) as client,
        ):
            assert ("strict-transport-security" in (await client.get("/healthz")).headers) is told


async def test_page_of_another_scheme_is_another_page(app: FastAPI) -> None:
    async with (
        Servers(app, tcp=Tcp()) as servers,
        httpx2.AsyncClient(base_url=servers.addresses[0], verify=False) as client,
    ):
        where = servers.addresses[0]
        for origin, status in ((where, 200), (where.replace("http:", "https:"), 403), ("null", 403)):
            answer = await client.post(
                "/api/v1/session", json={"token": OPERATOR}, headers={"Origin": origin}
            )
            assert answer.status_code == status, origin


async def test_no_more_are_answered_at_a_time_than_may_be(
    service: SimulatedService, running: RunningEngine
) -> None:
    going_on = asyncio.Event()
    hold_commands(service, going_on)
    limits = Limits(in_flight=6, in_flight_per_address=4)
    app = create_app(running.dispatcher, running.queries, MemoryTokens(), limits=limits)
    async with (
        Servers(app, tcp=Tcp()) as servers,
        httpx2.AsyncClient(base_url=servers.addresses[0], verify=False) as client,
    ):
        client.headers["Authorization"] = f"Bearer {OPERATOR}"
        waiting = [
            asyncio.create_task(
                client.post(
                    "/api/v1/migrations", json={"guest": "db"}, headers={"Idempotency-Key": f"waits-{n}"}
                )
            )
            for n in range(4)
        ]
        refused = None
        async with asyncio.timeout(20):
            while refused is None or refused.status_code != 429:
                refused = await client.get("/healthz")
                await asyncio.sleep(0.01)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["code"] == "too-many-requests"
        going_on.set()
        assert [(await one).status_code for one in waiting].count(202) >= 1
        assert (await client.get("/healthz")).status_code == 200
