"""``migrator direct`` moves a guest with the state of its TPM emulator, which comes with the stream."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.testing.lab import GuestMachine, Lab, until
from tests.command import direct
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _emulator() -> None:
    if shutil.which("swtpm") is None:
        missing("there is no swtpm: install the package swtpm")


@contextmanager
def _emulated(state: Path) -> Iterator[tuple[str, ...]]:
    """Run a TPM emulator; the options of a QEMU that has it."""
    state.mkdir()
    control = state / "control"
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={control}"]
    )
    try:
        yield (
            *("-chardev", f"socket,id=tpm-control,path={control}"),
            *("-tpmdev", "emulator,id=tpm0,chardev=tpm-control"),
            *("-device", "tpm-crb,tpmdev=tpm0"),
        )
    finally:
        process.kill()
        process.wait()


async def test_tpm_has_at_the_destination_the_state_that_it_had(lab: Lab, across: tuple[Path, Path]) -> None:
    here, there = lab.directory / "tpm-here", lab.directory / "tpm-there"
    with ExitStack() as stack:
        options = [stack.enter_context(_emulated(state)) for state in (here, there)]
        await until(lambda: all((state / "control").exists() for state in (here, there)), what="two TPMs")
        machine = GuestMachine(extra=options[0])
        pair = await lab.pair(
            machine,
            destination_machine=replace(machine, extra=options[1]),
            source=across[0],
            destination=across[1],
        )
        permanent = here / "tpm2-00.permall"
        await until(permanent.exists, what="a TPM that was switched on")
        secret = permanent.read_bytes()
        before = (there / permanent.name).read_bytes() if (there / permanent.name).exists() else b""
        assert before != secret  # each has seeds of its own
        ended = await direct(pair)
        assert (ended.code, ended.state) == (0, "completed"), ended.error
        await pair.destination.wait_beating()
        assert (there / permanent.name).read_bytes() == secret
