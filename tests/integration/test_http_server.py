"""The sockets: rights, stale ones, loopback, TLS, and an end within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from migrator.errors import UsageError
from migrator.http.admission import Admission
from migrator.http.app import create_app
from migrator.http.listeners import Tcp, UnixSocket
from migrator.http.server import Servers
from migrator.testing.lab import until
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from tests.command import started
from tests.http_service import OPERATOR, MemoryTokens, hold_commands, serving, two_hosts


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> SimulatedService:
    return two_hosts(tmp_path_factory.mktemp("records"))


@pytest.fixture
async def running(service: SimulatedService) -> AsyncIterator[RunningEngine]:
    async with service.running() as running:
        yield running


@pytest.fixture
async def app(running: RunningEngine) -> FastAPI:
    return create_app(running.dispatcher, running.queries, MemoryTokens())


async def hosts_at(path: Path) -> int:
    transport = httpx2.AsyncHTTPTransport(uds=str(path), verify=False)
    async with httpx2.AsyncClient(transport=transport) as client:
        return (await client.get("http://migrator/api/v1/hosts")).status_code


class TestUnixSocket:
    async def test_rights(self, app: FastAPI, tmp_path: Path):
        path = tmp_path / "run" / "api.sock"
        async with Servers(app, unix=UnixSocket(path=path, group="daemon")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
            assert path.group() == path.parent.group() == "daemon"
            assert await hosts_at(path) == 200
        assert not path.exists()
        assert list(path.parent.iterdir()) == []

    async def test_a_directory_that_is_there_is_left_as_it_is(self, app: FastAPI, tmp_path: Path):
        tmp_path.chmod(0o711)
        async with Servers(app, unix=UnixSocket(path=tmp_path / "api.sock")):
            assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o711

    async def test_a_stale_socket_is_replaced(self, app: FastAPI, tmp_path: Path):
        path = tmp_path / "api.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with Servers(app, unix=UnixSocket(path=path)):
            assert await hosts_at(path) == 200

    async def test_a_socket_in_use_is_not(self, app: FastAPI, tmp_path: Path):
        path = tmp_path / "api.sock"
        async with Servers(app, unix=UnixSocket(path=path)):
            with pytest.raises(UsageError, match="another service listens"):
                async with Servers(app, unix=UnixSocket(path=path)):
                    pass
            assert await hosts_at(path) == 200

    async def test_a_file_in_its_place_is_not_touched(self, app: FastAPI, tmp_path: Path):
        path = tmp_path / "api.sock"
        path.write_text("precious")
        with pytest.raises(UsageError, match="no socket"):
            async with Servers(app, unix=UnixSocket(path=path)):
                pass
        assert path.read_text() == "precious"

    async def test_the_path_of_a_successor_is_left_alone(self, app: FastAPI, tmp_path: Path):
        path = tmp_path / "api.sock"
        async with Servers(app, unix=UnixSocket(path=path)):
            path.unlink()
            path.write_text("another's")
        assert path.read_text() == "another's"

    @pytest.mark.parametrize("given", [{"group": "no-such-group"}, {"owner": "no-such-user"}])
    async def test_an_owner_that_is_not_there(self, app: FastAPI, tmp_path: Path, given: dict[str, str]):
        with pytest.raises(UsageError, match="no-such-"):
            async with Servers(app, unix=UnixSocket(path=tmp_path / "run" / "api.sock", **given)):  # type: ignore[arg-type]
                pass

    async def test_a_path_too_long(self, app: FastAPI, tmp_path: Path):
        with pytest.raises(UsageError, match="too long"):
            async with Servers(app, unix=UnixSocket(path=tmp_path / ("x" * 100))):
                pass

    async def test_another_user_is_told_apart(self, running: RunningEngine, tmp_path: Path):
        if os.getuid() != 0:
            pytest.skip("takes root")
        async with serving(running.dispatcher, running.queries, tmp_path) as place:
            for directory in (place.socket.parent, *place.socket.parents):
                if directory != Path("/") and directory.is_relative_to("/tmp") and directory != Path("/tmp"):
                    directory.chmod(0o755)
            place.socket.chmod(0o666)
            process = await asyncio.create_subprocess_exec(
                *(
                    "setpriv",
                    "--reuid=65534",
                    "--clear-groups",
                    "/usr/bin/python3",
                    "-c",
                    _POST,
                    str(place.socket),
                ),
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await asyncio.wait_for(process.communicate(), 20)
            assert b" 202 " in out
        [begun] = await running.queries.migrations(limit=10)
        assert begun.requested_by == "unix:65534"


_POST = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(b'POST /api/v1/migrations HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 15\\r\\n\\r\\n{"guest": "db"}')
print(s.recv(100))
"""


class TestTcp:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
    async def test_elsewhere_than_loopback_only_with_tls(self, app: FastAPI, host: str):
        with pytest.raises(UsageError, match="TLS"):
            async with Servers(app, tcp=Tcp(host=host)):
                pass

    async def test_a_port_in_use(self, app: FastAPI, tmp_path: Path):
        async with Servers(app, tcp=Tcp()) as first:
            port = int(first.addresses[0].rpartition(":")[2])
            path = tmp_path / "api.sock"
            with pytest.raises(UsageError, match="in use"):
                async with Servers(app, unix=UnixSocket(path=path), tcp=Tcp(port=port)):
                    pass
            assert not path.exists()

    async def test_tls(self, app: FastAPI, tmp_path: Path):
        certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        subprocess.run(
            [
                *(
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                ),
                *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
                *("-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        async with Servers(app, tcp=Tcp(host="0.0.0.0", tls=context)) as servers:
            port = servers.addresses[0].rpartition(":")[2]
            verify = ssl.create_default_context(cafile=certificate)
            async with httpx2.AsyncClient(verify=verify, base_url=f"https://127.0.0.1:{port}") as client:
                answer = await client.get("/api/v1/hosts", headers={"Authorization": f"Bearer {OPERATOR}"})
                assert answer.status_code == 200
                cookie = await client.post(
                    "/api/v1/session",
                    json={"token": OPERATOR},
                    headers={"Origin": f"https://127.0.0.1:{port}"},
                )
                assert "secure" in cookie.headers["set-cookie"].lower()
            by_url = {"MIGRATOR_SERVER": f"https://127.0.0.1:{port}", "MIGRATOR_TOKEN": OPERATOR}
            async with started("hosts", variables={**by_url, "SSL_CERT_FILE": str(certificate)}) as command:
                assert (await command.ended()).code == 0
            async with started("hosts", variables={**by_url, "SSL_CERT_FILE": "/dev/null"}) as command:
                ended = await command.ended()
            assert (ended.code, "SSL_CERT_FILE" in ended.err) == (7, True), ended.err


class TestTimeouts:
    @pytest.mark.parametrize(
        "sent", [b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal"]
    )
    async def test_a_head_that_does_not_come(self, app: FastAPI, sent: bytes):
        async with Servers(app, tcp=Tcp(), admission=Admission(head_seconds=0.1)) as servers:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", int(servers.addresses[0].rpartition(":")[2])
            )
            writer.write(sent)
            with contextlib.suppress(ConnectionResetError):
                answer = await asyncio.wait_for(reader.read(), 5)
                assert (b" 200 " in answer) == (b"healthz" in sent)
            writer.close()

    async def test_a_connection_that_was_served_is_kept(self, app: FastAPI):
        async with Servers(app, tcp=Tcp(), admission=Admission(head_seconds=0.1)) as servers:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", int(servers.addresses[0].rpartition(":")[2])
            )
            for _ in range(2):
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b" 200 " in await reader.readuntil(b"ok\n")
                await asyncio.sleep(
                    0.2
                )  # longer than a head may take to come: what must not happen has no event
            writer.close()

    async def test_too_many_connections(self, app: FastAPI):
        async with Servers(app, tcp=Tcp(), admission=Admission(connections_per_address=2)) as servers:
            port = int(servers.addresses[0].rpartition(":")[2])
            there = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for _, writer in there:
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for reader, _ in there:
                assert b" 200 " in await reader.readuntil(b"ok\n")
            with contextlib.suppress(ConnectionResetError):  # perhaps before it knows that it is connected
                reader, one_more = await asyncio.open_connection("127.0.0.1", port)
                there.append((reader, one_more))
                assert await asyncio.wait_for(reader.read(), 5) == b""
            for _, writer in there:
                writer.close()


class TestEnd:
    async def test_signals_stay_with_their_owner(self, app: FastAPI, tmp_path: Path):
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        async with Servers(app, unix=UnixSocket(path=tmp_path / "api.sock")):
            assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

    async def test_a_command_that_was_begun_is_answered(
        self, service: SimulatedService, running: RunningEngine, tmp_path: Path
    ):
        going_on = asyncio.Event()
        asked = hold_commands(service, going_on)
        async with serving(running.dispatcher, running.queries, tmp_path) as place:
            transport = httpx2.AsyncHTTPTransport(uds=str(place.socket), verify=False)
            async with httpx2.AsyncClient(transport=transport) as client:
                answer = asyncio.create_task(
                    client.post(
                        "http://migrator/api/v1/migrations",
                        json={"guest": "db"},
                        headers={"Idempotency-Key": "begun"},
                    )
                )
                await asked.wait()
                ending = asyncio.create_task(place.servers.__aexit__(None, None, None), name="the end")
                await until(lambda: not place.socket.exists(), what="an end that has begun")
                going_on.set()
                assert (await answer).status_code == 202
                await ending

    async def test_what_hangs_is_not_waited_for(
        self, service: SimulatedService, running: RunningEngine, tmp_path: Path
    ):
        loop = asyncio.get_running_loop()
        never = asyncio.Event()
        hold_commands(service, never)
        async with serving(running.dispatcher, running.queries, tmp_path, timeout_seconds=1) as place:
            reader, writer = await asyncio.open_unix_connection(str(place.socket))
            writer.write(
                b"POST /api/v1/migrations HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: hangs\r\n"
                b"Content-Length: 15\r\n\r\n"
            )
            writer.write(b'{"guest": "db"}')
            idle = await asyncio.open_unix_connection(str(place.socket))
            await until(lambda: len(place.app.state.dependencies._executing) == 1, what="a command")
            began = loop.time()
        assert loop.time() - began < 5
        assert await idle[0].read() == b""
        idle[1].close()
        writer.close()
        never.set()
        del reader
