"""What an operator has at a guest's process, read from its command line, and how the next process has the same."""

from __future__ import annotations

import pytest

from migrator.core.process.replica import TargetEnvironment
from migrator.qemu.operator_files import OperatorFiles, OperatorMonitor, operator_files, relocate

RUN = "/run/migrator/guests/m1-abc123"
HERE = TargetEnvironment(binary="/usr/bin/qemu", run_directory=RUN)
OURS = (
    *("-chardev", f"socket,id=migrator-control,server=on,wait=off,path={RUN}/control.qmp"),
    *("-mon", "chardev=migrator-control,mode=control"),
)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("-qmp", "unix:/a.qmp,server=on,wait=off"), OperatorMonitor(id="", path="/a.qmp")),
        (("-qmp-pretty", "unix:/a.qmp,server,nowait"), OperatorMonitor(id="", path="/a.qmp", pretty=True)),
        (
            ("-chardev", "socket,id=m,path=/a,,b.sock,server=on", "-mon", "m,mode=control,pretty=on"),
            OperatorMonitor(id="m", path="/a,b.sock", pretty=True),
        ),
        (
            ("-chardev", "socket,id=m,path=/a.sock,server=on", "-qmp", "chardev:m"),
            OperatorMonitor(id="m", path="/a.sock"),
        ),
        (
            ("-chardev", '{"backend": "socket"}', "-mon", "chardev=none,mode=control"),
            None,
        ),
    ],
)
def test_qmp_monitors_at_unix_sockets(words: tuple[str, ...], found: OperatorMonitor | None) -> None:
    assert operator_files(("qemu", *words), {}).monitors == ((found,) if found else ())


@pytest.mark.parametrize(
    "words",
    [
        ("-qmp", "tcp:127.0.0.1:4444,server=on"),
        ("-qmp", "stdio"),
        ("-qmp", "unix:/client.sock"),
        ("-chardev", "pty,id=m", "-mon", "chardev=m,mode=control"),
        ("-pidfile", "vm.pid"),
        ("-D", "qemu.log"),
    ],
)
def test_what_cannot_be_made_again_is_named(words: tuple[str, ...]) -> None:
    found = operator_files(("qemu", *words), {})
    assert found.paths == ()
    assert len(found.lost) == 1
    assert words[-1].partition(",mode")[0] in found.lost[0]


def test_a_human_monitor_is_like_any_other_socket() -> None:
    words = ("-monitor", "unix:/a.hmp,server=on", "-mon", "chardev=h,mode=readline")
    assert operator_files(("qemu", *words), {}) == OperatorFiles()


def test_the_next_process_is_found_by_the_same_paths_however_often_it_moves() -> None:
    argv = (
        "qemu",
        "-qmp",
        "unix:/x/vm.qmp,server=on",
        "-qmp",
        "unix:/y/vm.qmp,server=on",
        "-pidfile",
        "/x/vm.pid",
    )
    first = operator_files((*argv, "-D", "/x/vm.log"), {})
    assert first.paths == ("/x/vm.qmp", "/y/vm.qmp", "/x/vm.pid", "/x/vm.log")
    moved = relocate(first, HERE, log="/log/1.log", moved={"/x/serial": f"{RUN}/serial"}, names={})
    assert moved.links == {
        "/x/serial": f"{RUN}/serial",
        "/x/vm.qmp": f"{RUN}/vm.qmp",
        "/y/vm.qmp": f"{RUN}/vm-2.qmp",
        "/x/vm.pid": HERE.pid_file,
        "/x/vm.log": "/log/1.log",
    }
    names = {to: path for path, to in moved.links.items()}
    again = operator_files(("qemu", *OURS, "-pidfile", HERE.pid_file, *moved.words), names, log="/log/1.log")
    assert again.paths == first.paths
    assert [monitor.id for monitor in again.monitors] == ["monitor-0", "monitor-1"]
    there = TargetEnvironment(binary="/usr/bin/qemu", run_directory="/run/m2")
    more = relocate(again, there, log="/log/2.log", moved={f"{RUN}/serial": "/run/m2/serial"}, names=names)
    assert more.links == {
        path: to.replace(RUN, "/run/m2").replace("1.log", "2.log") for path, to in moved.links.items()
    }


def test_one_of_ours_without_a_name_is_nothing_to_be_lost() -> None:
    words = ("-chardev", f"socket,id=old,server=on,path={RUN}/old.qmp", "-mon", "chardev=old,mode=control")
    assert operator_files(("qemu", *OURS, *words, "-pidfile", HERE.pid_file), {}) == OperatorFiles()
