"""A guest that moves costs few commands over SSH, on connections that stay open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.core.findings import accept
from migrator.core.migration.drivers import Driver
from migrator.core.model import State
from migrator.core.policy import builtin
from migrator.engine.migration.services import SessionServices
from migrator.engine.migration.session import MigrationSession
from migrator.hosts.ssh import SshAccess
from migrator.settings.configuration import Settings
from migrator.settings.host_sections import HostSettings
from migrator.site import recent_facts, recent_processes, replication
from migrator.site.from_settings import make_site
from migrator.store.step_records import StepRecords
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Lab
from migrator.testing.network import LabHosts, inside
from tests.command import ACCEPTED_CODES
from tests.conftest import missing
from tests.sshd import Sshd

#: For the first guest between two hosts, from the moment that it was found until nothing of it is left at its source;
#: with what is asked once of each host, and the guard, which goes on for all guests that leave it.
MOST_COMMANDS = 16


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Hosts alpha and beta with an sshd each, seen from a third."""
    if reason := network.possible():
        missing(reason)
    with LabHosts("alpha", "beta", "control", isolated=True) as hosts, Lab() as lab:
        servers = {
            name: Sshd(tmp_path / name, address=hosts[name].address, prefix=hosts[name].prefix)
            for name in ("alpha", "beta")
        }
        with servers["alpha"], servers["beta"], inside(hosts["control"].namespace):
            yield SimpleNamespace(hosts=hosts, lab=lab, **servers)


async def test_moving_a_guest_takes_few_commands(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    begin = SshAccess._begin

    async def counting(self: SshAccess, command: bytes) -> Any:
        begun.append(f"{self.name}: {command.decode(errors='replace')[:400]}")
        return await begin(self, command)

    monkeypatch.setattr(SshAccess, "_begin", counting)
    # However busy this machine is, what was found a moment ago is not read again.
    monkeypatch.setattr(recent_facts, "_SECONDS", 60.0)
    monkeypatch.setattr(recent_processes, "_SECONDS", 60.0)
    monkeypatch.setattr(replication, "_RECENT_SECONDS", 60.0)
    settings = Settings(
        hosts=tuple(
            HostSettings.model_validate(
                {
                    "name": name,
                    "look_for": "sockets",
                    "address": world.hosts[name].address,
                    "sockets": [
                        f"{world.lab.directory}/*{name}.qmp",
                        f"{world.lab.directory}/run-{name}/*/control.qmp",
                    ],
                    "run_dir": f"{world.lab.directory}/run-{name}",
                    "log_dir": f"{tmp_path}/log-{name}",
                    "ssh": getattr(world, name).config().host,
                    "key_file": str(getattr(world, name).key),
                    "known_hosts": str(getattr(world, name).known_hosts),
                }
            )
            for name in ("alpha", "beta")
        )
    )
    await world.lab.boot(GuestMachine(), prefix=world.hosts["alpha"].prefix, label="alpha")
    site = make_site(
        settings, driver=Driver(token=os.urandom(6).hex(), controller="under-test", who="a test")
    )

    async def keep(session: MigrationSession) -> None: ...

    try:
        (guest,) = (await site.look("alpha")).guests
        await site.look("beta")
        begun.clear()
        session = MigrationSession(
            identifier="under-test",
            guest=guest,
            target="beta",
            policy=builtin("gentle").but(max_downtime_seconds=0.5),
            accepted=ACCEPTED_CODES,
            services=SessionServices(
                site=site,
                records=StepRecords(tmp_path / "steps"),
                accept=lambda found, codes: accept(found, ACCEPTED_CODES),
                keep=keep,
            ),
        )
        session.admit()
        await session.drive()
        assert session.state is State.COMPLETED, session.result.error
        assert len(begun) <= MOST_COMMANDS, "\n".join(begun)
    finally:
        await site.close()
