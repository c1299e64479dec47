"""``migrator direct`` begins at once: it loads nothing that it does not use."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from migrator.testing.lab import GuestMachine, Lab, until
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
    "platform",
    "prometheus_client",
    "pydantic",
    "random",
    "rich",
    "secrets",
    "shutil",
    "sqlalchemy",
    "statistics",
    "structlog",
    "tempfile",
    "typer",
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
    assert {"asyncio", "migrator.engine.migration.driver", "qemu.qmp"} <= loaded
    assert sorted(HEAVY & loaded) == []
    # Nor what other commands are.
    ours = {name for name in loaded if name.startswith("migrator.")}
    others = (
        *("http", "mqtt", "service", "settings", "metrics", "tracing"),
        *("cli.remote", "cli.service_commands", "core.inventory"),
        # Nor what other policies, hosts and monitors need.
        *("core.guest_experience", "core.link_learning", "core.migration.quiet_start", "engine.path_speeds"),
        *("engine.migration.quiet_wait", "store.learned_paths", "tls"),
        *("ports.assignments", "ports.computing", "ports.controllers", "qemu.identify"),
    )
    assert not {name for name in ours if name.startswith(tuple(f"migrator.{other}" for other in others))}


class TestEndsAtOnce:
    """Without the usual end of Python, which would have written what is left and closed what is open."""

    REFUSED = shlex.join(
        [*MIGRATOR, "direct", "--source", "unix:/nowhere", "--destination", "unix:/no", "--json"]
    )

    def shell(self, redirected: str) -> subprocess.CompletedProcess[str]:
        script = f"{self.REFUSED} {redirected}"
        # As a user has it: what is written waits in the process until it ends.
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        return subprocess.run(
            ["sh", "-c", script], env=variables, capture_output=True, text=True, timeout=30, check=False
        )

    def test_all_of_it_is_written(self) -> None:
        ended = self.shell("| cat; echo more")
        document, more = ended.stdout.splitlines()
        assert json.loads(document)["error"]
        assert more == "more"

    @pytest.mark.parametrize(
        ("redirected", "code"),
        [("", 3), (">&-", 3), (">&- 2>&-", 3), ("<&- >&- 2>&-", 3), (">/dev/full", 120)],
    )
    def test_with_its_code(self, redirected: str, code: int) -> None:
        ended = self.shell(redirected)
        assert ended.returncode == code, ended.stderr


async def test_a_destination_that_is_only_just_being_started_is_waited_for(lab: Lab) -> None:
    machine = GuestMachine()
    source = await lab.boot(machine)
    there = lab.directory / "later.qmp"
    ends = ("--source", f"unix:{source.qmp}", "--destination", f"unix:{there}")
    async with started("direct", *ends, "--json", "--wait", "20s") as command:

        def connected() -> bool:
            sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
            return any(words[-1] == str(source.qmp) and words[5] == "03" for words in sockets)

        await until(connected, what="a session with the source")
        monitor = ("-qmp", f"unix:{there},server=on,wait=off")
        destination = await lab.start(machine, incoming=True, extra=monitor)
        ended = await command.ended()
    assert (ended.code, ended.state) == (0, "completed"), ended.err
    await destination.wait_beating()


async def test_a_destination_that_does_not_come_is_not_waited_for_longer(lab: Lab) -> None:
    source = await lab.boot()
    ends = ("--source", f"unix:{source.qmp}", "--destination", f"unix:{lab.directory}/never.qmp")
    async with started("direct", *ends, "--json", "--wait", "0.2s") as command:
        ended = await command.ended()
    assert ended.code == 3
    assert "never.qmp" in ended.err
    await source.wait_beating()
