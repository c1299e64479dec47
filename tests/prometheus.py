"""A real Prometheus that scrapes a served ``/metrics``, with the shipped rules at a faster pace."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx2
import yaml  # type: ignore[import-untyped]

from migrator.metrics import Metrics
from migrator.testing.process import until
from tests.conftest import missing
from tests.ports import free_port

RULES = Path(__file__).parent.parent / "dashboards" / "rules"
#: Shipped: 10 s to each of these.
INTERVAL_SECONDS = 0.5


class Target:
    """Serves ``/metrics`` as the service does: what it is asked for, by the Accept header."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self.address = ""
        self.accepted: set[str] = set()

    async def start(self, port: int = 0) -> None:
        """Listen; at any port, or at the one it had."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", port)
        host, taken = self._server.sockets[0].getsockname()
        self.address = f"{host}:{taken}"

    async def stop(self) -> None:
        """Do not answer any more."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            found = re.search(r"^accept: *(.*?)\r$", head, re.MULTILINE | re.IGNORECASE)
            accept = found[1] if found else ""
            self.accepted.add(accept)
            body, content_type = await self._metrics.scrape(accept)
            lines = ("HTTP/1.1 200 OK", f"Content-Type: {content_type}", f"Content-Length: {len(body)}")
            writer.write("\r\n".join((*lines, "Connection: close", "", "")).encode() + body)
            await writer.drain()
        writer.close()


class Scraped(Protocol):
    """Something that serves ``/metrics``."""

    @property
    def address(self) -> str:
        """HOST:PORT."""


class Prometheus:
    """Its HTTP API."""

    def __init__(self, client: httpx2.AsyncClient, log: Path) -> None:
        self._client = client
        self.log = log

    async def get(self, path: str, **parameters: Any) -> Any:
        """The data of an answer."""
        answer = await self._client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, f"{path} {parameters}: {answer.text}"
        return answer.json()["data"]

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """Results of an instant query that are numbers, each with ``metric`` and ``number``."""
        data = await self.get("query", query=expr)
        results = [{**each, "number": float(each["value"][1])} for each in data["result"]]
        return [each for each in results if math.isfinite(each["number"])]

    async def had_data(self, expr: str, *, since: float) -> bool:
        """Tell whether a query has had a number at any time from `since`, in seconds of the epoch, until now."""
        data = await self.get("query_range", query=expr, start=since, end=time.time(), step=INTERVAL_SECONDS)
        return any(math.isfinite(float(value)) for each in data["result"] for _, value in each["values"])

    async def firing(self) -> dict[str, list[dict[str, Any]]]:
        """Alerts that fire, by name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for alert in (await self.get("alerts"))["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found


def _faster(text: str) -> str:
    """The shipped rules, 20 times as fast."""
    text = re.sub(r"interval: 10s", f"interval: {INTERVAL_SECONDS * 1e3:.0f}ms", text)

    def shorter(found: re.Match[str]) -> str:
        seconds = int(found[1]) * {"s": 1, "m": 60}[found[2]]
        return f"for: {seconds * INTERVAL_SECONDS * 100:.0f}ms"

    return re.sub(r"for: (\d+)([sm])$", shorter, text, flags=re.MULTILINE)


@contextlib.asynccontextmanager
async def running(target: Scraped, folder: Path) -> AsyncIterator[Prometheus]:
    """A Prometheus with data in `folder` that scrapes `target`."""
    if shutil.which("prometheus") is None:
        missing("there is no prometheus here")
    for name in ("recording.yml", "alerts.yml"):
        (folder / name).write_text(_faster((RULES / name).read_text(encoding="utf-8")), encoding="utf-8")
    pace = f"{INTERVAL_SECONDS * 1e3:.0f}ms"
    config = {
        "global": {"scrape_interval": pace, "scrape_timeout": pace, "evaluation_interval": pace},
        "rule_files": ["recording.yml", "alerts.yml"],
        "scrape_configs": [
            {
                "job_name": "migrator",
                "static_configs": [{"targets": [target.address], "labels": {"site": "test"}}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    log = folder / "log"
    with log.open("wb") as words:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
            stdout=words,
            stderr=words,
        )
    try:
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=10.0, verify=False
        ) as client:

            async def ready() -> bool:
                assert process.returncode is None, log.read_text(encoding="utf-8")
                with contextlib.suppress(httpx2.TransportError):
                    return (await client.get("/-/ready")).status_code == 200
                return False

            await until(ready, what="Prometheus is ready", within=20)
            yield Prometheus(client, log)
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(15):
            await process.wait()


@contextlib.contextmanager
def serving(data: Path, folder: Path) -> Iterator[Callable[..., Any]]:
    """A Prometheus over data that exists already, scraping nothing; gives what asks its API."""
    (folder / "nothing.yml").write_text("global: {}\n", encoding="utf-8")
    port = free_port()
    with (folder / "log").open("wb") as words:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'nothing.yml'}",
                f"--storage.tsdb.path={data}",
                "--storage.tsdb.retention.time=100y",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=words,
            stderr=words,
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, verify=False) as client:
            deadline = time.monotonic() + 20
            while True:
                assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
                with contextlib.suppress(httpx2.TransportError):
                    if client.get("/-/ready").status_code == 200:
                        break
                assert time.monotonic() < deadline, "Prometheus is not ready"
                time.sleep(0.05)

            def get(path: str, **parameters: Any) -> Any:
                answer = client.get(f"/api/v1/{path}", params=parameters)
                assert answer.status_code == 200, f"{path} {parameters}: {answer.text}"
                return answer.json()["data"]

            yield get
    finally:
        process.terminate()
        process.wait(timeout=15)
