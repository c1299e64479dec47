"""Which of the processes of a host are QEMUs, by what /proc says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from migrator.hosts.processes import FoundProcess, ProcessStat, QemuProcesses, parse, parse_stats, uuid_of

OWN, OTHER = "net:[1]", "net:[2]"
SHELL = 7
MIDDLE = " ".join("9" * 17)


def read(
    programs: Mapping[int, str],
    *,
    words: Mapping[int, Sequence[str]] | None = None,
    counts: Mapping[int, int] | None = None,
    parents: Mapping[int, int] | None = None,
    first: str = OWN,
    init: str = "systemd",
    names: Mapping[int, str] | None = None,
) -> QemuProcesses | None:
    records = (f"/proc/{pid}/exe {exe}\0" for pid, exe in programs.items())
    told = "".join(f"/proc/{pid}/cmdline:{count}\n" for pid, count in (counts or {}).items())
    called = {**dict.fromkeys(programs, "x"), **(names or {})}
    text = "".join(
        f"/proc/{pid}/stat:{pid} ({called.get(pid, 'x')}) S {(parents or {}).get(pid, 1)} {MIDDLE} 4711 0 0\n"
        for pid in called.keys() | (parents or {}).keys()
    )
    return parse(
        f"{SHELL}\0{init}\0boot\0{''.join(records)}@counts\0{told}",
        words or {},
        {**dict.fromkeys(programs, OWN), 1: first},
        parse_stats(text),
    )


def pids(found: QemuProcesses | None) -> list[int]:
    assert found is not None
    return [each.pid for each in found.qemus]


@pytest.mark.parametrize(
    "program",
    [
        *("/usr/bin/qemu-system-x86_64", "/opt/q/qemu-system-x86_64 (deleted)", "/usr/libexec/qemu-kvm"),
        *("/nix/store/x/bin/.qemu-system-aarch64-wrapped", "/usr/bin/kvm", "/snap/bin/qemu"),
    ],
)
def test_a_qemu_by_the_name_of_its_program(program: str) -> None:
    assert pids(read({SHELL: "/bin/dash", 10: program})) == [10]


@pytest.mark.parametrize(
    "program",
    [
        *("/usr/bin/qemu-img", "/usr/bin/qemu-nbd", "/usr/bin/qemu-storage-daemon", "/usr/bin/qemu-ga"),
        *("/usr/bin/qemu-aarch64-static", "/usr/bin/kvm_stat", "/usr/bin/vim"),
    ],
)
def test_no_qemu_of_a_guest(program: str) -> None:
    assert pids(read({SHELL: "/bin/dash", 10: program}, counts={10: 1})) == []


def test_a_program_of_another_name_is_told_by_its_arguments() -> None:
    found = read({SHELL: "/bin/dash", 10: "/opt/vmm/hypervisor", 11: "/opt/x"}, counts={10: 5, 11: 1})
    assert pids(found) == [10]


def test_whoever_waits_for_a_qemu_is_none() -> None:
    found = read(
        {SHELL: "/bin/dash", 10: "/opt/starter", 11: "/usr/bin/sudo", 12: "/opt/vmm", 13: "/bin/bash"},
        counts={10: 9, 11: 9, 12: 9, 13: 9},
        parents={12: 11, 11: 10, 10: 1, 13: 1},
    )
    assert found is not None
    assert [(each.pid, each.started) for each in found.qemus] == [(12, "4711")]


@pytest.mark.parametrize(
    ("name", "first_line"),
    [
        ("a) b", "a) b"),
        ("a) S 1 x\nb", "a) S 1 x"),
        ("\n/proc/8/stat:8", ""),
        ("", ""),
        (") R 1 2 3", ") R 1 2 3"),
    ],
)
def test_a_program_may_be_called_anything(name: str, first_line: str) -> None:
    stat = f"10 ({name}) S 3 {MIDDLE} 4711 0 0"
    text = "".join(f"/proc/10/stat:{line}\n" for line in stat.split("\n"))
    assert parse_stats(text) == {10: ProcessStat(name=first_line, parent=3, started="4711")}


def test_one_whose_program_may_not_be_read_is_told_by_its_name() -> None:
    found = read(
        {SHELL: "/bin/dash", 10: "", 11: "", 12: ""},
        names={10: "qemu-system-x86", 11: "kvm-pit/10", 12: "qemu-system-x86"},
        counts={10: 3, 11: 0, 12: 0},  # 12 is a zombie: it has no arguments any more
    )
    assert pids(found) == [10]


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["-help"],
        ["-machine", "help"],
        ["-machine", "none,accel=kvm:tcg", "-qmp", "unix:/var/lib/libvirt/qemu/q/qmp.monitor"],
        ["-M", "type=none"],
        ["-cpu", "help", "-machine", "pc"],
    ],
)
def test_one_that_is_asked_what_it_can_do_runs_no_guest(words: list[str]) -> None:
    assert pids(read({SHELL: "/bin/dash", 10: "/usr/bin/qemu-system-x86_64"}, words={10: words})) == []


def test_a_guest_may_be_called_help() -> None:
    words = ["-name", "help", "-machine", "q35", "-uuid", "version"]
    assert pids(read({SHELL: "/bin/dash", 10: "/usr/bin/qemu-system-x86_64"}, words={10: words})) == [10]


def test_what_could_not_be_read_is_not_taken_for_nothing() -> None:
    assert read({10: "/usr/bin/qemu-system-x86_64"}) is None, "not even the shell that looked was found"
    assert parse("", {}, {}, {}) is None
    found = read({SHELL: "/bin/dash"}, init="")
    assert found is not None
    assert found.hidden, "processes of other users cannot be seen"


def test_where_its_monitors_are() -> None:
    process = FoundProcess(
        pid=1,
        words=(
            *(
                "-chardev",
                "socket,id=mon0,path=/run/a,,b.qmp,server=on",
                "-mon",
                "chardev=mon0,id=m,mode=control",
            ),
            *("-qmp", "unix:/run/c.qmp,server=on,wait=off", "-qmp-pretty", "tcp:127.0.0.1:4444,server=on"),
            *("-chardev", "socket,id=hmp,path=/run/hmp,server=on", "-mon", "hmp,mode=readline"),
            *("-chardev", "socket,id=t,host=::1,port=5", "-mon", "t,mode=control", "-m", "size=2G,slots=2"),
        ),
    )
    assert process.monitors == ("unix:/run/c.qmp", "tcp:127.0.0.1:4444", "unix:/run/a,b.qmp", "tcp:::1:5")
    assert process.memory_bytes == 2 << 30


@pytest.mark.parametrize(
    ("words", "bytes_"),
    [(("-m", "512"), 512 << 20), (("-m", "1.5g"), 3 << 29), ((), 128 << 20), (("-m", "x"), 128 << 20)],
)
def test_what_memory_its_guest_was_given(words: tuple[str, ...], bytes_: int) -> None:
    assert FoundProcess(pid=1, words=words).memory_bytes == bytes_


def test_a_uuid_of_the_firmware_is_the_guests() -> None:
    uuid = "0b7b4a3c-6a2b-4a5e-8a6e-3f1f3f1f3f1f"
    assert uuid_of(["-smbios", f"type=1,manufacturer=x,uuid={uuid.upper()}"]) == uuid
    assert uuid_of(["-smbios", f"type=2,uuid={uuid}"]) == ""
