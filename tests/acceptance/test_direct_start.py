"""``migrator direct`` begins at once: it loads nothing that it does not use."""

from __future__ import annotations

import re
import sys

import pytest

from migrator.testing.lab import Lab
from tests.command import MIGRATOR, addresses, started

#: Each costs as much as several steps of a migration, and not one of them has a part in one between unix sockets.
HEAVY = {
    "aiomqtt",
    "alembic",
    "asyncssh",
    "email",
    "fastapi",
    "httpx2",
    "importlib.metadata",
    "multiprocessing",
    "prometheus_client",
    "pydantic",
    "rich",
    "sqlalchemy",
    "structlog",
    "typer.rich_utils",
    "uvicorn",
    "zoneinfo",
}


@pytest.mark.parametrize("output", [("--json",), ()], ids=["json", "for a person"])
async def test_loads_nothing_that_it_does_not_use(lab: Lab, output: tuple[str, ...]) -> None:
    pair = await lab.pair()
    tracing = (sys.executable, "-X", "importtime", *MIGRATOR)
    async with started(
        "direct", *addresses(pair), *output, "--max-downtime", "300ms", program=tracing
    ) as command:
        ended = await command.ended()
    assert ended.code == 0, ended.err
    loaded = set(re.findall(r"^import time:.*\|\s+(\S+)$", ended.err, re.MULTILINE))
    assert {"asyncio", "migrator.engine.migration", "qemu.qmp"} <= loaded
    assert not HEAVY & loaded
    # Nor what other commands are.
    ours = {name for name in loaded if name.startswith("migrator.")}
    others = ("http", "mqtt", "service", "settings", "metrics", "cli.remote", "cli.service_commands")
    assert not {name for name in ours if name.startswith(tuple(f"migrator.{other}" for other in others))}
