"""What is read from a host: out of recorded answers of its script, and of hosts that are there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.core.inventory import HostFacts
from migrator.core.process.guest_network import NetworkInterface
from migrator.errors import HostError
from migrator.hosts import bound_ports
from migrator.hosts.access import Output
from migrator.hosts.bound_ports import parse_sockets as parse_ports
from migrator.hosts.facts import PAYLOAD_RATIO, parse, read_facts
from migrator.hosts.local import LocalAccess
from migrator.hosts.sockets import FoundSocket, SocketClient
from migrator.hosts.sockets import parse as parse_sockets
from migrator.machine import boot_id
from migrator.testing.lab import binaries
from migrator.testing.network import LabHosts

SERVER = """
@@memory
MemTotal:       131912436 kB
MemAvailable:   98212004 kB

@@cpus
64

@@cpu
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz
flags\t\t: fpu vme de vmx ept
vmx flags\t: vnmi preemption_timer ept vpid
bugs\t\t: spectre_v1

@@has
kvm
vhost-net
systemd

@@hugepages
1048576kB 4
2048kB 512

@@boot
5f1c63c4-9e0b-4f6c-a8a3-1f4d7d2a9a10

@@kernel
6.1.0-28-amd64

@@links
{links}

@@speeds
eno1 3c:ec:ef:00:00:01 device 25000
eno2 3c:ec:ef:00:00:02 device 10000
bond0 3c:ec:ef:00:00:01 virtual 35000
vmbr0 3c:ec:ef:00:00:01 virtual 10
tap100i0 7a:00:00:00:00:01 virtual 10
eno3 3c:ec:ef:00:00:03 device -1
wlan0 3c:ec:ef:00:00:04 device{blank}
lo 00:00:00:00:00:00 virtual{blank}

@@mine
192.0.2.10      STREAM host-1
192.0.2.10      DGRAM
192.0.2.10      RAW

@@qemus
/opt/qemu/bin/qemu-system-x86_64
fd00:4711:23456:1700000000
QEMU emulator version 10.0.2
/usr/bin/qemu-system-x86_64
fd00:4712:34567:1700000001
QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)
/usr/bin/qemu-kvm



@@end
"""


def link(name: str, mac: str, *addresses: str, **more: Any) -> dict[str, Any]:
    return {"ifname": name, "address": mac, "addr_info": [{"local": each} for each in addresses], **more}


def links(address_on: str) -> str:
    def addresses(name: str) -> list[str]:
        return ["192.0.2.10", "fe80::1"] if name == address_on else []

    first, second = "3c:ec:ef:00:00:01", "3c:ec:ef:00:00:02"
    names = {"eno1": (first, {"master": "bond0"}), "eno2": (second, {"master": "bond0"})}
    return json.dumps(
        [
            link("lo", "00:00:00:00:00:00", "127.0.0.1"),
            *(link(name, mac, *addresses(name), **more) for name, (mac, more) in names.items()),
            link("eno3", "3c:ec:ef:00:00:03", *addresses("eno3")),
            link("bond0", first, *addresses("bond0"), master="vmbr0", linkinfo={"info_kind": "bond"}),
            link("tap100i0", "7a:00:00:00:00:01", master="vmbr0", linkinfo={"info_kind": "tun"}),
            link("vmbr0", first, *addresses("vmbr0"), linkinfo={"info_kind": "bridge"}),
            link("vmbr0.7", first, *addresses("vmbr0.7"), link="vmbr0", linkinfo={"info_kind": "vlan"}),
            {},
        ]
    )


def recorded(address_on: str = "vmbr0") -> str:
    return SERVER.format(links=links(address_on), blank=" ")


class TestRecorded:
    def test_server(self) -> None:
        facts = parse(recorded())
        assert facts.links["tap100i0"] == NetworkInterface(kind="tun", master="vmbr0")
        assert replace(facts, links={}) == HostFacts(
            memory_total_bytes=131912436 << 10,
            memory_free_bytes=98212004 << 10,
            cpus=64,
            cpu_model="Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz",
            cpu_flags=frozenset({"fpu", "vme", "de", "vmx", "ept"}),
            nested_flags=frozenset({"vnmi", "preemption_timer", "ept", "vpid"}),
            kvm=True,
            userfaultfd=False,
            vhost_net=True,
            hugepages={1 << 30: 4, 2 << 20: 512},
            link_bytes_per_second=1.25e9 * PAYLOAD_RATIO,
            qemus={
                "/opt/qemu/bin/qemu-system-x86_64": "10.0.2",
                "/usr/bin/qemu-system-x86_64": "7.2.22",
            },
            interfaces=frozenset({"lo", "eno1", "eno2", "eno3", "bond0", "tap100i0", "vmbr0", "vmbr0.7"}),
            addresses=frozenset({"192.0.2.10", "127.0.0.1", "fe80::1"}),
            bridges=frozenset({"vmbr0"}),
            systemd=True,
            boot_id="5f1c63c4-9e0b-4f6c-a8a3-1f4d7d2a9a10",
            kernel="6.1.0-28-amd64",
        )

    @pytest.mark.parametrize(
        ("interface", "bytes_per_second"),
        [
            ("eno1", 3.125e9),
            ("eno2", 1.25e9),
            ("bond0", 1.25e9),  # a stream goes over one of its two, and that may be the slower
            ("vmbr0", 1.25e9),  # not the tap of a guest
            ("vmbr0.7", 1.25e9),
            ("eno3", None),
            ("nowhere", None),
        ],
    )
    def test_speed_of_the_link_that_carries_the_address(
        self, interface: str, bytes_per_second: float | None
    ) -> None:
        wanted = None if bytes_per_second is None else bytes_per_second * PAYLOAD_RATIO
        assert parse(recorded(interface)).link_bytes_per_second == wanted

    def test_speed_of_another_namespace_is_not_taken(self) -> None:
        other = recorded("eno1").replace("eno1 3c:ec:ef:00:00:01 device", "eno1 00:00:00:00:00:99 device")
        assert parse(other).link_bytes_per_second is None

    def test_programs_that_are_missing(self) -> None:
        facts = parse(recorded().replace("systemd\n", "no-python3\nno-ping\n"))
        assert not facts.python3
        assert not facts.ping

    @pytest.mark.parametrize("line", ["root", "userfaultfd"])
    def test_userfaultfd_for_root_or_for_all(self, line: str) -> None:
        assert parse(recorded().replace("systemd\n", f"{line}\n")).userfaultfd

    def test_links_that_go_in_a_circle(self) -> None:
        text = json.dumps(
            [link("a", "1", "192.0.2.10", link="b"), link("b", "2", link="a", linkinfo={"info_kind": "vlan"})]
        )
        assert parse(SERVER.format(links=text, blank=" ")).link_bytes_per_second is None

    def test_what_is_missing_is_left_out(self) -> None:
        assert parse("\n@@memory\n\n@@cpus\n\n@@links\n\n@@end\n") == HostFacts()

    def test_other_architecture(self) -> None:
        facts = parse("\n@@cpu\nprocessor\t: 0\nFeatures\t: fp asimd\n\n@@end\n")
        assert facts.cpu_flags == frozenset({"fp", "asimd"})


class Noting(LocalAccess):
    """Keeps what the last command has said."""

    said = ""

    async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: bytes = b"") -> Output:
        output = await super().run(argv, timeout=timeout, stdin=stdin)
        self.said = output.text
        return output


class TestRead:
    async def test_of_this_machine(self) -> None:
        own = {str(path) for path in binaries().values()}
        facts = await read_facts(LocalAccess("here"), address="127.0.0.1", qemus=sorted(own))
        assert facts.boot_id == boot_id()
        assert facts.cpus == os.cpu_count()
        assert 0 < facts.memory_free_bytes <= facts.memory_total_bytes
        assert own <= set(facts.qemus)
        assert facts.kernel == os.uname().release
        assert "lo" in facts.interfaces
        assert facts.cpu_model

    async def test_a_qemu_is_run_again_only_once_it_is_another_file(self, tmp_path: Path) -> None:
        binary, other = tmp_path / "qemu", tmp_path / "other"
        here = Noting("here")
        for program in ("bash", "git"):  # each says "version …"
            found = shutil.which(program)
            assert found is not None
            shutil.copy(found, other)
            other.replace(binary)
            versions = []
            for times in (1, 0):
                facts = await read_facts(here, address="127.0.0.1", qemus=[str(binary)])
                versions.append(facts.qemus[str(binary)])
                section = here.said.partition(f"\n{binary}\n")[2].splitlines()
                assert section[1].count("version") == times
            assert versions[0] == versions[1]
            done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
            assert versions[0] in done.stdout

    async def test_ports_are_the_same_with_ss_and_without(self, tmp_path: Path) -> None:
        (tmp_path / "grep").symlink_to(str(shutil.which("grep")))
        ends = [
            (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
            (socket.AF_INET6, socket.SOCK_STREAM, "::"),
            (socket.AF_INET6, socket.SOCK_STREAM, "::ffff:127.0.0.1"),
            (socket.AF_INET, socket.SOCK_DGRAM, "0.0.0.0"),
            (socket.AF_INET6, socket.SOCK_DGRAM, "::1"),
        ]
        found = []
        with contextlib.ExitStack() as opened:
            mine = [opened.enter_context(socket.socket(family, kind)) for family, kind, _ in ends]
            for each, (_, kind, address) in zip(mine, ends, strict=True):
                each.bind((address, 0))
                if kind == socket.SOCK_STREAM:
                    each.listen()
            numbers = {each.getsockname()[1] for each in mine}
            for access in (LocalAccess("here"), LocalAccess("here", ("env", f"PATH={tmp_path}"))):
                output = await access.run(["/bin/sh"], stdin=bound_ports.SOCKETS)
                found.append({each for each in parse_ports(output.text) if each.number in numbers})
        assert found[0] == found[1]
        assert {each.address for each in found[0]} == {"127.0.0.1", "::", "0.0.0.0", "::1"}

    async def test_a_script_that_is_a_qemu_is_always_run(self, tmp_path: Path) -> None:
        binary, version = tmp_path / "qemu", tmp_path / "version"
        binary.write_text(f"#!/bin/sh\ncat {version}\n")
        binary.chmod(0o755)
        here = LocalAccess("here")
        for number in ("8.1", "9.2"):
            version.write_text(f"version {number}\n")
            facts = await read_facts(here, address="127.0.0.1", qemus=[str(binary)])
            assert facts.qemus[str(binary)] == number

    async def test_of_hosts_in_namespaces(self, hosts: LabHosts) -> None:
        host = hosts["alpha"]
        host.run("ip", "link", "add", "a-bridge", "type", "bridge")
        facts = await read_facts(LocalAccess("alpha", host.prefix), address=host.address)
        assert facts.interfaces == {"lo", "uplink", "a-bridge"}
        assert facts.bridges == {"a-bridge"}

    async def test_arguments_are_not_read_by_a_shell(self, tmp_path: Path) -> None:
        evil = f"$(touch {tmp_path}/EVIL)`touch {tmp_path}/EVIL`; touch {tmp_path}/EVIL"
        await read_facts(LocalAccess("here"), address=evil, qemus=[evil])
        assert not list(tmp_path.iterdir())

    async def test_of_a_host_that_prints_rubbish(self) -> None:
        with pytest.raises(HostError, match="host odd: its facts cannot be read: no answer"):
            await read_facts(LocalAccess("odd", ("true",)), address="127.0.0.1")


def answer(
    *, files: str, table: str, held: str, names: Mapping[int, str] | None = None, arguments: str = ""
) -> str:
    rest = " ".join("9" * 20)
    stats = "".join(f"/proc/{pid}/stat:{pid} ({name}) S 1 {rest}\n" for pid, name in (names or {}).items())
    return f"{files}@table\0{table}\0@held\0{held}\0@arguments\0{arguments}\0@stats\0{stats}@end\0"


def entry(state: str, name: str, inode: int, peer: int, file: int, device: str = "0/24") -> str:
    return f"u_str {state} 0 0 {name} {inode} * {peer} <-> ino:{file} dev:{device} peers: {peer}\n"


class TestSockets:
    FILES = "24 77 /run/a.qmp\0"
    HELD = "/proc/10/fd socket:[500]\n/proc/20/fd socket:[601]\n/proc/10/fd socket:[600]\n"

    def test_held_by_another(self) -> None:
        table = entry("LISTEN", "/run/a.qmp", 500, 0, 77) + entry("ESTAB", "/run/a.qmp", 600, 601, 77)
        names = {10: "qemu-system-x86", 20: "virtqemud"}
        (found,) = parse_sockets(answer(files=self.FILES, table=table, held=self.HELD, names=names))
        assert found == FoundSocket(
            path="/run/a.qmp",
            listening=True,
            pid=10,
            busy=True,
            clients=(SocketClient(pid=20, command="virtqemud", inode="601"),),
            libvirt=True,
        )
        assert found.holders == "'virtqemud' (pid 20)"

    def test_left_behind(self) -> None:
        (found,) = parse_sockets(answer(files=self.FILES, table=entry("LISTEN", "/x", 5, 0, 6), held=""))
        assert (found.listening, found.pid) == (False, None)

    def test_inode_of_another_file_system(self) -> None:
        # tmpfs counts its inodes from 1: two sockets of one number are told apart by their names.
        table = entry("LISTEN", "/dev/shm/b.qmp", 500, 0, 77, "0/25")
        (found,) = parse_sockets(answer(files=self.FILES, table=table, held=self.HELD))
        assert not found.listening
        table += entry("LISTEN", "/run/renamed since", 600, 0, 77)
        (found,) = parse_sockets(answer(files=self.FILES, table=table, held=self.HELD))
        assert found.pid == 10

    @pytest.mark.parametrize("device", ["0/65024", "4064/0", "9/9"])
    def test_ways_to_write_the_number_of_a_device(self, device: str) -> None:
        files = "65024 77 /run/a.qmp\0"
        table = entry("LISTEN", "relative/a.qmp", 500, 0, 77, device)
        (found,) = parse_sockets(answer(files=files, table=table, held=self.HELD))
        assert found.pid == 10

    def test_name_that_pretends_to_be_an_entry(self) -> None:
        evil = f"x\n{entry('LISTEN', '/run/a.qmp', 601, 0, 77)}u_str LISTEN 0 0 y"
        table = entry("LISTEN", "/run/a.qmp", 500, 0, 77) + entry("LISTEN", evil, 900, 0, 88)
        (found,) = parse_sockets(answer(files=self.FILES, table=table, held=self.HELD))
        assert (found.listening, found.pid) == (True, None), "nobody is taken for it"

    def test_socket_that_its_maker_passed_on(self) -> None:
        held = "/proc/10/fd socket:[500]\n/proc/1/fd socket:[500]\n"
        names = {1: "systemd", 10: "qemu-system-x86"}
        table = entry("LISTEN", "/run/a.qmp", 500, 0, 77)
        (found,) = parse_sockets(answer(files=self.FILES, table=table, held=held, names=names))
        assert found.pid == 10

    @pytest.mark.parametrize(
        ("value", "name"),
        [
            ("web", "web"),
            ("guest=web,debug-threads=on", "web"),
            ("debug-threads=on,guest=a,,b", "a,b"),
            ("web,process=x", "web"),
            ("debug-threads=on", ""),
        ],
    )
    def test_name_in_a_command_line(self, value: str, name: str) -> None:
        words = ["-name", value, "-uuid", "ABCDEF00-0000-0000-0000-000000000001"]
        arguments = "".join(f"/proc/10/cmdline\0{word}\0" for word in words)
        table = entry("LISTEN", "/run/a.qmp", 500, 0, 77)
        (found,) = parse_sockets(answer(files=self.FILES, table=table, held=self.HELD, arguments=arguments))
        assert (found.name, found.uuid) == (name, "abcdef00-0000-0000-0000-000000000001")
