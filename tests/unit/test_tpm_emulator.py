"""The command line of an emulator of a TPM, read, and written for another host."""

from __future__ import annotations

import pytest

from migrator.core.process.command_line import CommandLine
from migrator.core.process.tpm_emulator import TpmEmulator, tpm_socket
from migrator.errors import Refused

SOCKET = "/run/web/control"
STATE = ("--tpmstate", "dir=/var/lib/swtpm/web,mode=0600")
CONTROL = ("--ctrl", f"type=unixio,path={SOCKET},mode=0660")


def test_next_one_has_the_same_state_and_options_and_ends_with_its_qemu() -> None:
    argv = (
        "/usr/bin/swtpm",
        "socket",
        "--tpm2",
        *STATE,
        *CONTROL,
        "--key=file=/etc/key,mode=aes-256-cbc",
        "-d",
    )
    found = TpmEmulator.parse(
        (*argv, "--log", "file=/log", "--pid", "file=/pid", "--seccomp", "action=none"), SOCKET
    )
    assert found.key_files == ("/etc/key",)
    assert found.command("/run/m/x") == (
        *("swtpm", "socket", "--tpm2", "--key", "file=/etc/key,mode=aes-256-cbc", "--seccomp", "action=none"),
        *("--tpmstate", "dir=/var/lib/swtpm/web,mode=0600"),
        *("--ctrl", "type=unixio,path=/run/m/x/tpm/control,mode=0660"),
        *("--pid", "file=/run/m/x/tpm/pid", "--terminate", "--daemon"),
    )


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("swtpm", "chardev", *STATE, *CONTROL), "no swtpm that serves a socket"),
        (("swtpm", "socket", *STATE, "--ctrl", f"type=unixio,path={SOCKET}2"), "does not serve"),
        (("swtpm", "socket", "--tpmstate", "backend-uri=file:///x", *CONTROL), "no directory"),
        (("swtpm", "socket", "--tpmstate", "dir=here", *CONTROL), "from the root"),
        (("swtpm", "socket", *STATE, *CONTROL, "--key", "fd=4"), "handed to it open"),
        (("swtpm", "socket", *STATE, *CONTROL, "--server", "type=tcp"), "--server"),
        (("swtpm", "socket", *STATE, *CONTROL, "-x"), "-x is not|option -x"),
    ],
)
def test_one_of_which_not_all_is_understood_is_not_started_again(argv: tuple[str, ...], why: str) -> None:
    with pytest.raises(Refused, match=why):
        TpmEmulator.parse(argv, SOCKET)


def test_socket_is_that_of_the_emulated_tpm() -> None:
    chardevs = ("-chardev", "socket,id=a,path=/a", "-chardev", f"socket,id=b,path={SOCKET}")
    assert tpm_socket(CommandLine(("qemu", *chardevs, "-tpmdev", "emulator,id=t,chardev=b"))) == SOCKET
    assert tpm_socket(CommandLine(("qemu", *chardevs, "-tpmdev", "passthrough,id=t"))) == ""
