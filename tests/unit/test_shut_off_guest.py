"""The command line that starts a guest which is shut off, as its owner wrote it."""

from __future__ import annotations

import pytest

from migrator.core.shut_off_guest import read
from migrator.errors import UsageError

UUID = "3c1e6f7a-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    "text",
    [
        f'["/usr/bin/qemu-system-x86_64", "-S", "-daemonize", "-pidfile", "/run/x", "-uuid", "{UUID}", "-m", "a b"]',
        f"# web\n/usr/bin/qemu-system-x86_64 -S -daemonize -pidfile /run/x \\\n  -uuid {UUID} -m 'a b'\n",
    ],
    ids=["json", "shell"],
)
def test_it_is_started_without_running(text: str) -> None:
    guest = read(text, "web.guest")
    assert guest.uuid == UUID
    assert guest.paused(pid_file="/r/pid", monitors=["/r/a,b.qmp"]) == (
        *("/usr/bin/qemu-system-x86_64", "-uuid", UUID, "-m", "a b"),
        *("-S", "-pidfile", "/r/pid", "-qmp", "unix:/r/a,,b.qmp,server=on,wait=off"),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "begins with 'nothing'"),
        ("ls -l", "no command line of QEMU"),
        ("qemu-system-x86_64 -m 1G", "has no -uuid"),
        (f"qemu-system-x86_64 -uuid {UUID} -incoming defer", "-incoming"),
        (f"qemu-system-x86_64 -uuid {UUID} --loadvm x", "-loadvm"),
        ("[1]", "no list of words"),
        ("qemu-system-x86_64 'x", "cannot be read"),
    ],
)
def test_what_cannot_be_moved_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read(text, "web.guest")
