"""What a QEMU can be given while it runs, and what becomes of it when its guest moves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from migrator.core.findings import CATALOGUE
from migrator.core.policy import BlockJobs
from migrator.core.preflight.compare import source_ready
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.non_migrated_state import findings
from migrator.core.preflight.state_kinds import KINDS
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.monitor import Monitor
from migrator.qemu.non_migrated_state import read_non_migrated_state
from migrator.testing.lab import GuestMachine, Lab, until
from tests.qemu_commands import changes_nothing, kinds_of_commands


class TestTable:
    async def test_every_command_that_changes_something_is_in_one_row(
        self, lab: Lab, each_qemu: Path
    ) -> None:
        qemu = await lab.start(GuestMachine(), binary=each_qemu, paused=True)
        async with qemu.monitor() as monitor:
            qmp = {each["name"] for each in await monitor.execute("query-commands")}
            schema = await monitor.execute("query-qmp-schema")
            help_text = await monitor.execute("human-monitor-command", {"command-line": "help"})
        qmp |= {each["name"] for each in schema if each["meta-type"] == "command"}
        lines = re.findall(r"^([a-z?][\w?|-]*)(?: |$)", help_text, re.MULTILINE)
        hmp = {name for names in lines for name in names.split("|")}
        assert len(qmp) > 200
        assert len(hmp) > 100
        rows = kinds_of_commands()
        unknown = {
            each
            for each in qmp | hmp
            if not changes_nothing(each) and each not in rows and each.replace("_", "-") not in rows
        }
        assert unknown - {"c", "q", "s"} == set()  # short for cont, quit, stop


def test_no_command_is_in_two_rows() -> None:
    assert [command for command, rows in kinds_of_commands().items() if len(rows) > 1] == []


def test_a_command_that_only_asks_is_in_no_row() -> None:
    assert [command for command in kinds_of_commands() if changes_nothing(command)] == []


def test_every_finding_that_the_table_names_is_in_the_catalogue() -> None:
    assert {code for kind in KINDS for code in kind.findings} <= set(CATALOGUE)


async def make_busy(monitor: Monitor, directory: Path) -> None:
    """A backup that does not end by itself, and an export, of the guest's disk."""
    listen = {"type": "unix", "data": {"path": str(directory / "nbd.sock")}}
    await monitor.execute("nbd-server-start", {"addr": listen})
    await monitor.execute("block-export-add", {"type": "nbd", "id": "fleece", "node-name": "disk0"})
    await monitor.execute(
        "blockdev-add", {"driver": "null-co", "node-name": "copy", "size": 1 << 20, "read-zeroes": True}
    )
    await monitor.execute(
        "blockdev-backup",
        {"device": "disk0", "target": "copy", "sync": "full", "job-id": "nightly", "speed": 1},
    )


class TestWhatIsUnderWay:
    async def test_is_read_and_named(self, lab: Lab, each_qemu: Path) -> None:
        extra = ("-vnc", f"unix:{lab.directory}/vnc,password=on", "-chardev", "ringbuf,id=ring")
        qemu = await lab.start(GuestMachine(extra=extra), binary=each_qemu)
        end = Endpoint(Address(kind="unix", path=str(qemu.qmp)), role="source")
        await end.connect()
        quiet = await end.facts()
        assert not quiet.non_migrated.disk_users
        assert codes(quiet) == {"display-password", "stays-behind"}
        await make_busy(end.monitor, lab.directory)
        await end.monitor.execute("block-dirty-bitmap-add", {"node": "disk0", "name": "since monday"})
        create = {"driver": "file", "filename": str(lab.directory / "new"), "size": 4096}
        await end.monitor.execute("blockdev-create", {"job-id": "made", "options": create})
        await until(lambda: unread(end), what="a job that has ended")
        seen = await end.facts()
        await end.close()
        assert (
            str(seen.non_migrated.disk_users) == "backup nightly, nbd export fleece"
        )  # of the backup's own node
        assert seen.non_migrated.bitmaps == (("disk0", "since monday"),)
        assert codes(seen) == codes(quiet) | {"block-job-waits", "block-export-waits", "dirty-bitmap"}
        refused = {each.code for each in findings(seen.non_migrated, BlockJobs.REFUSE)}
        assert {"block-job", "block-export"} <= refused

    async def test_execution_that_is_recorded_is_refused(self, lab: Lab, each_qemu: Path) -> None:
        record = ("-icount", f"shift=7,rr=record,rrfile={lab.directory}/rr")
        qemu = await lab.start(GuestMachine(extra=record), binary=each_qemu, paused=True)
        end = Endpoint(Address(kind="unix", path=str(qemu.qmp)), role="source")
        await end.connect()
        assert "replay" in codes(await end.facts())
        await end.close()


async def unread(end: Endpoint) -> bool:
    return bool((await end.facts()).non_migrated.unread)


def codes(facts: Facts) -> set[str]:
    return {each.code for each in source_ready(facts)} - {"tcg-loses-writes"}


class TestPasswords:
    """What QEMU shows of a SPICE display; its module need not be here."""

    SPICE: ClassVar = {"query-spice": {"enabled": True, "auth": "spice"}}

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ("port=5930", ("the SPICE display",)),
            ("port=5930,password-secret=s0", ()),
        ],
    )
    async def test_spice(self, given: str, said: tuple[str, ...]) -> None:
        async def ask(command: str, **arguments: Any) -> Any:
            return self.SPICE.get(command)

        assert (await read_non_migrated_state(ask, ["qemu", "-spice", given])).passwords == said
