"""A QEMU is known as one whatever its program is called, and nobody else is taken for one."""

from __future__ import annotations

import pytest

from migrator.core.process.qemu_program import is_qemu

WORDS = ("-machine", "q35", "-qmp", "unix:/q", "-m", "1G")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("qemu-system-x86_64", ()),
        (".qemu-system-x86_64-wrapped", ()),
        ("qemu-kvm", ()),
        ("kvm", ()),
        ("vmm", WORDS),
        ("our-hypervisor", ("--nodefaults", "--qmp", "unix:/q")),
    ],
)
def test_is_one(program: str, words: tuple[str, ...]) -> None:
    assert is_qemu(program, (program, *words))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("", ()),
        ("qemu-img", ("convert", "a", "b")),
        ("qemu-nbd", ("-c", "/dev/nbd0", "a")),
        ("sh", ("-c", "qemu", *WORDS)),
        ("sudo", ("qemu-system-x86_64", *WORDS)),
        ("virtqemud", ()),
        ("socat", ("UNIX-LISTEN:/q", "EXEC:qemu")),
        ("vmm", ("-m", "1G")),
    ],
)
def test_is_none(program: str, words: tuple[str, ...]) -> None:
    assert not is_qemu(program, (program, *words))
