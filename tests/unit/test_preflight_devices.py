"""What speaks against a host because of files, devices and networks that the command line names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from migrator.core.preflight import host_files, host_network
from migrator.core.preflight.facts import Device
from migrator.core.preflight.host_checks import check
from migrator.core.process import named_files
from migrator.core.process.command_line import CommandLine, is_path, path_of
from migrator.core.process.files import FileFacts, FileKind
from migrator.core.process.guest_network import NetworkInterface
from migrator.core.process.tpm_emulator import TpmObstacles
from tests.host_case import (
    ARGV,
    CASE,
    FILE,
    HELPER,
    IMAGE,
    QEMU,
    SEEN,
    SOURCE,
    THERE,
    codes,
    with_files,
    with_options,
    with_source,
)


class TestFiles:
    @pytest.mark.parametrize(
        ("options", "path"),
        [
            (("-kernel", "/boot/k"), "/boot/k"),
            (("-initrd", "/boot/i"), "/boot/i"),
            (("-bios", "/fw/b"), "/fw/b"),
            (("-device", "virtio-net-pci,romfile=/fw/rom"), "/fw/rom"),
            (("-device", "loader,file=/fw/l,addr=0"), "/fw/l"),
            (("-object", "secret,id=s,file=/keys/s"), "/keys/s"),
            (("-object", "tls-creds-x509,id=t,dir=/keys/t,endpoint=server"), "/keys/t"),
            (("--object", '{"qom-type":"tls-creds-psk","id":"t","dir":"/keys/t"}'), "/keys/t"),
            (("-fw_cfg", "opt/x,file=/fw/x"), "/fw/x"),
            (("-smbios", "file=/fw/s"), "/fw/s"),
            (("-acpitable", "data=/fw/1:/fw/2"), "/fw/2"),
            (("-device", "vhost-vsock-pci,guest-cid=3"), "/dev/vhost-vsock"),
            (("-fsdev", "local,id=f,path=/share,security_model=none"), "/share"),
            (("-chardev", "socket,id=c,path=/run/log"), "/run/log"),
        ],
    )
    def test_file_that_the_target_lacks(self, options: tuple[str, ...], path: str) -> None:
        case = with_options(*options)
        assert path in host_files.paths_to_read(case.command)
        present = {name: replace(FILE, real=name) for name in host_files.paths_to_read(case.command)}
        case = with_files(with_files(case, present), present, here=True)
        assert "file-missing" not in codes(case)
        assert "file-missing" in codes(with_files(case, {path: FileFacts()}))
        assert "file-access" in codes(with_files(case, {path: replace(FILE, readable=False)}))
        text = next(
            each for each in check(with_files(case, {path: FileFacts()})) if each.code == "file-missing"
        )
        assert path in text.message

    def test_firmware_of_another_size(self) -> None:
        case = with_files(with_options("-bios", "/fw/b"), {"/fw/b": FILE}, here=True)
        assert codes(with_files(case, {"/fw/b": replace(FILE, size_bytes=1)})) == ["file-differs"]

    @pytest.mark.parametrize(
        "options",
        [
            ("-bios", "bios-256k.bin"),
            ("-device", "virtio-net-pci,romfile="),
            ("-chardev", "socket,id=c,path=/run/log,server=on,wait=off"),
            ("-append", "-kernel /boot/k"),
            ("-name", "-bios"),
            ("-object", "rng-builtin,id=r"),
        ],
    )
    def test_what_names_no_file_is_not_asked_for(self, options: tuple[str, ...]) -> None:
        assert codes(with_options(*options)) == []

    def test_processes_that_serve_devices(self) -> None:
        options = (
            *("-chardev", "socket,id=c1,path=/run/vu", "-netdev", "vhost-user,id=n1,chardev=c1"),
            *("-chardev", "socket,id=c2,path=/run/tpm", "-tpmdev", "emulator,id=t0,chardev=c2"),
        )
        case = with_options(*options)
        assert codes(case) == ["vhost-user", "tpm", "vhost-user-socket", "vhost-user-socket"]
        there = {path: FileFacts(kind=FileKind.SOCKET) for path in ("/run/vu", "/run/tpm")}
        assert codes(with_files(case, there)) == ["vhost-user", "tpm"]
        here = {"/run/vu": FileFacts(kind=FileKind.SOCKET)}
        for tpm, found in (
            (TpmObstacles(), []),
            (TpmObstacles(target="no swtpm"), ["tpm-emulator"]),
            (TpmObstacles(state="somebody's"), ["tpm-state"]),
            (TpmObstacles(source="not seen"), ["tpm", "vhost-user-socket"]),
        ):
            assert codes(replace(with_files(case, here), tpm=tpm)) == ["vhost-user", *found]

    def test_connections_over_vsock_are_lost(self) -> None:
        case = with_files(with_options("-device", "vhost-vsock-pci,guest-cid=3"), {"/dev/vhost-vsock": FILE})
        assert codes(case) == ["vsock"]

    def test_usb_device_of_the_host(self) -> None:
        assert codes(with_options("-device", "usb-host,vendorid=1")) == ["host-device"]


class TestVfio:
    PCI = "/sys/bus/pci/devices/0000:3b:00.1"
    BOUND: Mapping[str, FileFacts] = {
        PCI: FileFacts(kind=FileKind.DIRECTORY),
        f"{PCI}/driver": FileFacts(kind=FileKind.DIRECTORY, real="/sys/bus/pci/drivers/vfio-pci"),
    }

    def found(self, *options: str, **source: Any) -> list[str]:
        case = with_options(*options, source=replace(SOURCE, **source))
        return codes(with_files(case, self.BOUND))

    def test_device_that_qemu_says_blocks(self) -> None:
        device = ("-device", "vfio-pci,host=3b:00.1,id=vf")
        blockers = ("0000:3b:00.1: VFIO device doesn't support migration",)
        assert self.found(*device, blockers=blockers) == ["blocked", "vfio"]
        assert self.found(*device, version="5.2.0") == ["vfio"]
        assert self.found(*device) == ["vfio-state"]

    def test_failover_pair_makes_it_movable(self) -> None:
        pair = (
            "-device",
            "virtio-net-pci,id=n1,failover=on",
            "-device",
            "vfio-pci,host=3b:00.1,failover_pair_id=n1",
        )
        assert self.found(*pair) == ["vfio-failover"]
        half = ("-device", "virtio-net-pci,id=n1", "-device", "vfio-pci,host=3b:00.1,failover_pair_id=n1")
        assert self.found(*half) == ["vfio-state"]

    def test_each_card_of_a_pair_that_is_none_is_named_with_what_it_lacks(self) -> None:
        card = ("-device", "vfio-pci,id=fast,host=3b:00.1,failover_pair_id=n1")
        for partner, lacks in (
            ("virtio-net-pci,id=n1", "n1 has no failover=on"),
            ("e1000,id=n1", "n1 is no virtio-net card"),
            ("virtio-net-pci,id=n2,failover=on", "n1 does not exist"),
        ):
            case = with_files(with_options("-device", partner, *card), self.BOUND)
            (said,) = [each for each in check(case) if each.code == "vfio-state"]
            assert "fast is hardware" in said.message
            assert lacks in said.message

    def test_card_of_any_kind_that_is_the_primary_of_a_pair_is_unplugged(self) -> None:
        pair = (
            "-device",
            "virtio-net-pci,id=n1,failover=on",
            "-device",
            "e1000e,id=fast,failover_pair_id=n1",
        )
        case = with_options(*pair)
        (said,) = [each for each in check(case) if each.code == "vfio-failover"]
        assert "QEMU unplugs fast" in said.message
        assert said.message.endswith("n1 takes over")

    def test_device_that_the_target_lacks_or_uses_itself(self) -> None:
        case = with_options("-device", "vfio-pci,host=0000:3b:00.1,id=vf")
        assert set(self.BOUND) <= set(host_files.paths_to_read(case.command))
        assert codes(case) == ["vfio-missing", "vfio-state"]
        own = {
            **self.BOUND,
            f"{self.PCI}/driver": FileFacts(kind=FileKind.DIRECTORY, real="/sys/bus/pci/drivers/ixgbevf"),
        }
        assert codes(with_files(case, own)) == ["vfio-missing", "vfio-state"]

    def test_device_that_was_plugged_in_later(self) -> None:
        devices = (*SOURCE.devices, Device(name="vf", driver="vfio-pci"))
        found = codes(with_source(devices=devices))
        assert found == ["device-not-offered", "vfio-state"]


class TestNetwork:
    SCRIPT = "/etc/qemu-ifup"

    def found(self, netdev: str, files: Mapping[str, FileFacts] | None = None, **there: Any) -> list[str]:
        at = ARGV.index("-netdev")
        argv = [*ARGV[:at], "-netdev", netdev, *ARGV[at + 2 :]]
        case = replace(CASE, command=CommandLine(argv), there=replace(THERE, **there))
        return codes(with_files(case, files or {}))

    def test_bridge(self) -> None:
        assert self.found("tap,id=n,br=br1") == ["bridge-missing"]
        assert self.found("bridge,id=n,br=br1") == ["bridge-missing"]
        assert self.found("bridge,id=n,br=br0") == []
        assert self.found("bridge,id=n") == []
        assert self.found("bridge,id=n", bridges=frozenset()) == ["bridge-missing"]
        assert self.found("bridge,id=n,br=eth0") == ["bridge-missing"]

    @pytest.mark.parametrize("given", ["", ",script=/etc/qemu-ifup"])
    def test_script(self, given: str) -> None:
        assert self.found(f"tap,id=n{given}") == ["net-script"]
        assert self.found(f"tap,id=n{given}", {self.SCRIPT: HELPER}) == []
        assert self.found(f"tap,id=n{given}", {self.SCRIPT: replace(HELPER, executable=False)}) == [
            "net-script"
        ]

    def test_helper(self) -> None:
        assert self.found("tap,id=n,helper=/usr/bin/no --x") == ["net-script"]
        assert self.found("tap,id=n,helper=/usr/bin/yes --x", {"/usr/bin/yes": HELPER}) == []

    def test_tap_that_nobody_makes(self) -> None:
        tap = "tap,id=n,ifname=tap7,script=no,downscript=no"
        assert self.found(tap) == ["tap-missing"]
        assert self.found(tap, interfaces=THERE.interfaces | {"tap7"}) == []
        assert self.found("tap,id=n,ifname=tap7,script=/s", {"/s": HELPER}) == []
        assert self.found(tap, interfaces=frozenset()) == []  # could not be read

    def test_tap_that_another_process_has_open(self) -> None:
        tap, there = "tap,id=n,ifname=tap7,script=no,downscript=no", THERE.interfaces | {"tap7"}
        held = {"tap7": NetworkInterface(kind="tun", up=True, carrier=True)}
        assert self.found(tap, interfaces=there, links=held) == ["tap-in-use"]
        assert self.found(f"{tap},queues=2", interfaces=there, links=held) == []  # more may open it
        assert self.found(tap, interfaces=there, links={"tap7": NetworkInterface(kind="tun", up=True)}) == []

    def test_taps_and_bridges_are_compared_with_the_sources_host(self) -> None:
        here = {
            "tap7": NetworkInterface(kind="tun", up=True, master="br0"),
            "br0": NetworkInterface(kind="bridge", up=True),
        }
        there = {
            "tap7": NetworkInterface(kind="tun", up=False, master=""),
            "br0": NetworkInterface(kind="bridge", up=False),
        }
        case = with_options("-netdev", "tap,id=n,ifname=tap7,script=no")
        there_ = replace(THERE, links=there, interfaces=THERE.interfaces | {"tap7"})
        case = replace(case, here=replace(case.here, links=here), there=there_)
        # The first of what every guest here has, br=br0.
        assert codes(case) == ["bridge-down", "tap-down", "tap-bridge"]
        assert codes(replace(case, here=replace(case.here, links=there))) == []

    def test_bridge_that_the_tap_is_on_here(self) -> None:
        case = with_options("-netdev", "tap,id=n,ifname=tap7,script=no")
        case = replace(case, there=replace(THERE, interfaces=THERE.interfaces | {"tap7"}))
        assert codes(replace(case, files_here=replace(SEEN, masters={"tap7": "br0"}))) == []
        assert codes(replace(case, files_here=replace(SEEN, masters={"tap7": "br9"}))) == [
            "bridge-maybe-missing"
        ]

    def test_vhost(self) -> None:
        assert self.found("tap,id=n,br=br0,vhost=on") == []
        assert self.found("tap,id=n,br=br0,vhost=on", vhost_net=False) == ["vhost-net-missing"]
        assert self.found("tap,id=n,br=br0,vhostforce=on,vhost=on", vhost_net=False) == ["vhost-net-required"]
        assert self.found("tap,id=n,br=br0", vhost_net=False) == []

    @pytest.mark.parametrize(
        ("netdev", "code"),
        [
            ("user,id=n,hostfwd=tcp::2222-:22", "user-network"),
            ('{"type":"user","id":"n"}', "user-network"),
            ("tap,id=n,fd=9", "passed-descriptor"),
            ("tap,id=n,br=br0,vhost=on,vhostfd=9", "passed-descriptor"),
            ("socket,id=n,connect=h:1", "socket-network"),
            ("stream,id=n,server=on,addr.type=unix,addr.path=/s", "socket-network"),
            (f"stream,id=n,addr.type=unix,addr.path={IMAGE}", "socket-network"),
            ("af-xdp,id=n,ifname=eth9", "net-interface"),
            ("vhost-vdpa,id=n,vhostdev=/dev/vhost-vdpa-0", "file-missing"),
        ],
    )
    def test_other_kinds(self, netdev: str, code: str) -> None:
        assert self.found(netdev) == [code]

    def test_a_program_that_is_to_be_there_already(self) -> None:
        assert self.found("stream,id=n,addr.type=unix,addr.path=/s") == ["file-missing", "socket-network"]
        assert self.found("vde,id=n,sock=/s") == ["file-missing", "socket-network"]
        assert self.found("user,id=n,tftp=/s") == ["file-missing", "user-network"]

    def test_network_by_default_is_qemus_own(self) -> None:
        assert codes(replace(CASE, command=CommandLine([QEMU]))) == ["cache-unknown", "user-network"]
        assert codes(replace(CASE, command=CommandLine([QEMU, "-nic", "none"]))) == ["cache-unknown"]
        assert codes(replace(CASE, command=CommandLine([QEMU, "-nic", "user,model=e1000"]))) == [
            "cache-unknown",
            "user-network",
        ]

    def test_what_is_looked_at_is_read(self) -> None:
        line = CommandLine([QEMU, "-netdev", "tap,id=a", "-netdev", "vhost-vdpa,id=b,vhostdev=/dev/v"])
        assert host_network.paths_to_read(line) == [self.SCRIPT, "/dev/v"]


class TestCommandLine:
    @pytest.mark.parametrize(
        ("file", "path"),
        [
            ("/a b,c", "/a b,c"),
            ("file:/a", "/a"),
            ("relative/a", "relative/a"),
            ("nbd:host:1", ""),
            ("https://x/a", ""),
            ("", ""),
            ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/a"}}', "/a"),
            (
                'json:{"driver":"throttle","file":{"driver":"raw","file":{"driver":"file","filename":"/a"}}}',
                "/a",
            ),
            (
                'json:{"backing":{"driver":"file","filename":"/base"},"file":{"driver":"file","filename":"/a"}}',
                "/a",
            ),
            ('json:{"driver":"nbd","server":{"host":"h"}}', ""),
            (
                'json:{"driver":"vvfat","dir":"/a","write-target":{"file":{"filename":"/var/tmp/vl.F6XI"}}}',
                "",
            ),
            ("json:{rubbish", ""),
        ],
    )
    def test_path_in_a_file_name(self, file: str, path: str) -> None:
        assert path_of(file) == path

    @pytest.mark.parametrize(
        "path", ["/a,b", "/with space", "/$(touch x)", "/'quote\"", "/new\nline", "/a=b", "/a:b/c", "/-rf"]
    )
    def test_awkward_paths_survive(self, path: str) -> None:
        assert is_path(path)
        doubled = path.replace(",", ",,")
        line = CommandLine([QEMU, "-drive", f"file={doubled},format=raw,cache=none", "-kernel", path])
        (image,) = line.images()
        assert image.path == path
        assert image.direct
        assert [file.path for file in named_files.named_files(line)] == [path]

    def test_rubbish_is_no_reason_to_fall_over(self) -> None:
        for words in (
            ["-drive"],
            ["-object", "{"],
            ["-device", ",,,="],
            ["--"],
            ["-"],
            ["", ""],
            ["-m", "x,y"],
        ):
            assert isinstance(codes(replace(CASE, command=CommandLine([QEMU, *words]))), list)

    def test_empty(self) -> None:
        assert not CommandLine([])
        assert CommandLine([QEMU])
