"""Whose a process is, and what is said of it: from what was read of both hosts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from migrator.core.model import Severity
from migrator.core.preflight.host_checks import check
from migrator.core.preflight.host_process import ProcessPair, differences, written_paths
from migrator.core.process.command_line import CommandLine
from migrator.core.process.files import FileFacts, FileKind
from migrator.core.process.process_identity import (
    DroppedPrivileges,
    OpenFile,
    OpenFiles,
    ProcessIdentity,
    start_directory,
)
from migrator.hosts.launch import LaunchProfile, unit_command
from migrator.hosts.run_as import run_as, unit_properties
from migrator.hosts.run_directories import RunDirectory
from tests.host_case import ARGV, CASE, IMAGE, codes

SOURCE = ProcessIdentity(user=107, group=107, account="vm", directory="/", root="/", umask=0o22)
OPEN = OpenFile(path=IMAGE, deleted=False, kind=FileKind.REGULAR, device="0:50", inode=7)
PROCESS = ProcessPair(
    source=SOURCE, target=SOURCE, open_files=OpenFiles(files=(OPEN,)), account="vm", number=107
)


def found(argv: tuple[str, ...] = (), **changes: Any) -> list[str]:
    command = CommandLine([*ARGV, *argv])
    return codes(replace(CASE, command=command, process=replace(PROCESS, **changes)))


def of_source(**changes: Any) -> list[str]:
    """The source is so, and the target cannot make it."""
    return found(source=replace(SOURCE, **changes))


class TestFindings:
    def test_process_that_can_be_the_same_raises_nothing(self) -> None:
        assert found() == []

    @pytest.mark.parametrize(
        ("changes", "codes"),
        [
            ({"target": None, "complaint": "setpriv: no"}, ["process-user"]),
            ({"target": replace(SOURCE, user=0)}, ["process-user"]),
            ({"number": 64055}, ["user-differs"]),
            ({"account": "", "number": None}, ["user-missing"]),
            ({"open_files": OpenFiles()}, ["process-unknown"]),
            ({"open_files": OpenFiles(), "replicated": False, "target": None}, ["process-unknown"]),
            ({"open_files": OpenFiles(files=(), directory="/")}, ["disk-replaced"]),
            ({"open_files": OpenFiles(files=(OPEN,), elsewhere=frozenset({"/boot/k"}))}, ["mount-namespace"]),
            ({"may": {"/dev/kvm": "e"}}, ["file-access"]),
            ({"may": {"/dev/net/tun": "er"}}, ["file-access"]),
        ],
    )
    def test_of_user_and_files(self, changes: dict[str, Any], codes: list[str]) -> None:
        assert found(**changes) == codes

    @pytest.mark.parametrize(
        ("changes", "codes"),
        [
            ({"groups": frozenset({36})}, ["process-settings"]),
            ({"groups": frozenset({107})}, []),  # its own once more
            ({"umask": 0o27}, ["process-settings"]),
            ({"cpus": "2-3"}, ["process-settings"]),
            ({"nice": -5}, ["process-settings"]),
            ({"policy": "rr", "priority": 1}, ["process-settings"]),
            ({"oom_adjustment": -900}, ["process-settings"]),
            ({"label": "libvirt-1 (enforce)"}, ["process-settings"]),
            ({"filtered": True}, ["process-settings"]),
            ({"no_new_privileges": True}, ["process-settings"]),
            ({"capabilities": 1 << 12}, ["process-settings"]),
            ({"root": "/srv/jail"}, ["chroot"]),
            ({"namespaces": frozenset({"user"})}, ["user-namespace"]),
            ({"namespaces": frozenset({"pid", "mnt"})}, ["process-namespace"]),
            ({"directory": "/srv"}, ["working-directory"]),
            ({"cgroup": "/system.slice/vm.service"}, []),
            ({"cgroup": "/gold.slice/vm.scope"}, ["cgroup"]),
            ({"cgroup": "/x", "cgroup_limits": {"memory.max": "1"}}, ["cgroup"]),
        ],
    )
    def test_of_what_the_target_cannot_make(self, changes: dict[str, Any], codes: list[str]) -> None:
        assert of_source(**changes) == codes

    def test_what_qemu_puts_on_itself_is_no_difference(self) -> None:
        source = replace(SOURCE, filtered=True, no_new_privileges=True)
        assert found(("-sandbox", "on"), source=source) == []

    def test_limit_that_follows_from_a_hosts_memory_may_be_larger_there(self) -> None:
        for name, mine, theirs, count in (
            ("nproc", "100", "200", 0),
            ("nproc", "200", "100", 1),
            ("nofile", "100", "200", 1),
            ("sigpending", "100", "200", 0),
            ("memlock", "unlimited", "65536", 1),
        ):
            here = replace(SOURCE, limits={name: (mine, mine)})
            there = replace(SOURCE, limits={name: (theirs, theirs)})
            assert len(list(differences(here, there))) == count

    def test_systemd_makes_the_cgroup_there(self) -> None:
        process = replace(PROCESS, source=replace(SOURCE, cgroup="/gold.slice/vm.scope"))
        there = replace(CASE.there, systemd=True)
        assert codes(replace(CASE, process=process, there=there)) == []

    @pytest.mark.parametrize(
        ("option", "severity"),
        [("-runas", "vm"), ("-run-with", "user=vm"), ("-run-with", "async-teardown=on,user=vm")],
    )
    def test_user_to_become_must_exist(self, option: str, severity: str) -> None:
        assert found((option, severity)) == []
        assert found((option, severity), number=None) == ["runas-missing"]
        other = replace(SOURCE, user=64055)
        assert found((option, severity), number=64055, target=other) == ["user-differs"]

    @pytest.mark.parametrize("option", [("-chroot", "/srv"), ("-run-with", "chroot=/srv,user=vm")])
    def test_root_to_change_to_is_refused_and_cannot_be_accepted(self, option: tuple[str, str]) -> None:
        assert found(option) == ["chroot"]

    def test_files_that_it_writes(self) -> None:
        options = (
            "-chardev",
            "file,id=a,path=/log/a",
            "-serial",
            "file:/log/b",
            "-debugcon",
            "file:/dev/tty1",
        )
        more = ("-chardev", "socket,id=c,path=/x,server=on,logfile=/log/c")
        assert written_paths(CommandLine([*ARGV, *options, *more])) == ["/log/a", "/log/c", "/log/b"]
        for may, count in (
            ({"/log/a": "erw", "/log": "e"}, 0),
            ({"/log/a": "er", "/log": "erwx"}, 1),
            ({"/log/a": "-", "/log": "erwx"}, 0),
            ({"/log/a": "-", "/log": "erx"}, 1),
            ({"/log/a": "-", "/log": "-"}, 1),
        ):
            assert found(options[:2], may=may) == ["file-access"] * count
            assert found((*options[:2], "-runas", "vm"), may=may) == []  # it opens them as root


class TestReplacedDisk:
    def test_says_where_the_old_one_is(self) -> None:
        old = replace(OPEN, inode=99, deleted=True, descriptor="/proc/7/fd/12")
        (one,) = [
            each
            for each in _findings(open_files=OpenFiles(files=(old,), directory="/"))
            if each.code == "disk-replaced"
        ]
        assert "/proc/7/fd/12" in one.message
        assert one.severity is Severity.ERROR

    def test_device_is_told_by_its_number_not_by_its_node(self) -> None:
        node = FileFacts(kind=FileKind.BLOCK, device="253:3", inode=5)
        open_files = OpenFiles(files=(replace(OPEN, kind=FileKind.BLOCK, device="253:3", inode=900),))
        assert open_files.has(node)
        assert not open_files.has(replace(node, device="253:4"))
        assert OpenFiles().has(node)


def _findings(**changes: Any) -> list[Any]:
    return list(check(replace(CASE, process=replace(PROCESS, **changes))))


class TestStartedIn:
    FILES = tuple(replace(OPEN, path=path) for path in ("/a/disk", "/a/sub/other", "/b/sub/other", "/x"))

    @pytest.mark.parametrize(
        ("relative", "daemonized", "directory"),
        [
            (["disk"], False, "/now"),
            (["disk"], True, "/a"),
            (["./disk"], True, "/a"),
            (["sub/other"], True, ""),  # there are two
            (["sub/other", "disk"], True, "/a"),
            (["x"], True, "/"),
            (["kernel"], True, ""),
            (["kernel", "disk"], True, "/a"),
            (["../disk"], True, ""),
            (["isk"], True, ""),
            ([], True, "/now"),
        ],
    )
    def test_open_files_tell(self, relative: list[str], daemonized: bool, directory: str) -> None:
        assert start_directory(self.FILES, relative, directory="/now", daemonized=daemonized) == directory


class TestDrops:
    @pytest.mark.parametrize(
        ("options", "drops"),
        [
            ((), DroppedPrivileges()),
            (("-runas", "vm"), DroppedPrivileges(user="vm")),
            (("-runas", "1:2"), DroppedPrivileges(user="1:2")),
            (("-runas", "a", "-run-with", "user=b"), DroppedPrivileges(user="b")),
            (("-chroot", "/x", "-runas", "vm"), DroppedPrivileges(user="vm", root="/x")),
            (("-run-with", "user=vm,chroot=/x y"), DroppedPrivileges(user="vm", root="/x y")),
            (("-run-with", "async-teardown=on"), DroppedPrivileges()),
        ],
    )
    def test_read_from_the_command_line(self, options: tuple[str, ...], drops: DroppedPrivileges) -> None:
        assert DroppedPrivileges.of(CommandLine(["qemu", *options])) == drops

    def test_it_is_started_with_its_rights_and_its_directory_is_that_users(self) -> None:
        words = run_as(SOURCE, drops=DroppedPrivileges(user="vm"), run_directory="/run/x")
        assert not [word for word in words if word.startswith(("user=", "groups=", "account="))]
        assert words.index("owner=vm:") < words.index("own=/run/x")
        words = run_as(SOURCE, drops=DroppedPrivileges(user="5:6"), run_directory="/run/x")
        assert "owner=5:6" in words
        assert "account=vm" in run_as(SOURCE, as_user="vm")
        assert {"user=5", "group=6", "groups=6"} <= set(run_as(SOURCE, as_user="5:6"))


class TestCgroup:
    @pytest.mark.parametrize(
        ("cgroup", "name"),
        [
            ("/", ""),
            ("/machine.slice/machine-qemu\\x2d1.scope", ""),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/vm.service", ""),
            ("/system.slice/system-vm.slice/vm@web.service", ""),
            ("/qemu.slice/100.scope", "qemu.slice"),
            ("/gold.slice/gold-web.slice/vm.scope", "gold-web.slice"),
            ("/kubepods/x", ""),
        ],
    )
    def test_slice(self, cgroup: str, name: str) -> None:
        assert replace(SOURCE, cgroup=cgroup).slice == name

    def test_limits_are_properties_of_the_unit(self) -> None:
        limits = {
            "memory.max": "4294967296",
            "cpu.max": "150000 100000",
            "io.weight": "default 50",
            "cpuset.cpus": "2-5",
        }
        properties = unit_properties(replace(SOURCE, cgroup_limits=limits))
        assert properties == [
            "MemoryMax=4294967296",
            "CPUQuota=150%",
            "CPUQuotaPeriodSec=100ms",
            "IOWeight=50",
            "AllowedCPUs=2-5",
        ]
        run_dir = RunDirectory(path="/run/m/x", log="/log/x", unit="x.service")
        words = unit_command(run_dir, ["qemu"], LaunchProfile(slice="gold.slice", properties=properties))
        assert "--slice=gold.slice" in words
        assert words.index("--property=MemoryMax=4294967296") < words.index("--")
