"""Whatever file a command line names is one that the target must have."""

from __future__ import annotations

import pytest

from migrator.core.preflight.host_files import paths_to_read
from migrator.core.process.command_line import CommandLine
from migrator.core.process.named_files import named_files


@pytest.mark.parametrize(
    "words",
    [
        ("-bios", "{}"),
        ("-kernel", "{}"),
        ("-initrd", "{}"),
        ("-dtb", "{}"),
        ("-shim", "{}"),
        ("-readconfig", "{}"),
        ("-machine", "q35,kernel={}"),
        ("-M", "virt,dtb={}"),
        ("-option-rom", "{}"),
        ("-option-rom", "romfile={},bootindex=3"),
        ("-acpitable", "sig=SLIC,file={}"),
        ("-acpitable", "data=/other:{}"),
        ("-smbios", "file={}"),
        ("-smbios", "type=11,path=/other,path={}"),
        ("-fw_cfg", "name=opt/x,file={}"),
        ("-fw_cfg", "opt/x,file={}"),
        ("-spice", "port=1,x509-dir={}"),
        ("-spice", "port=1,x509-key-file={}"),
        ("-vnc", ":1,x509={}"),
        ("-display", "egl-headless,rendernode={}"),
        ("-chardev", "pipe,id=c,path={}"),
        ("-chardev", "socket,id=c,path={}"),
        ("-chardev", "serial,id=c,path={}"),
        ("-serial", "pipe:{}"),
        ("-monitor", "mon:unix:{},reconnect=1"),
        ("-parallel", "/dev/x"),
        ("-tpmdev", "passthrough,id=t,path={}"),
        ("-fsdev", "local,id=f,path={},security_model=none"),
        ("-virtfs", "local,path={},mount_tag=t,security_model=none"),
        ("-object", "secret,id=s,file={}"),
        ("-object", "tls-creds-x509,id=t,dir={},endpoint=server"),
        ("-object", '{"qom-type": "rng-random", "id": "r", "filename": "{}"}'),
        ("-object", "authz-list-file,id=a,filename={}"),
        ("-object", "pr-manager-helper,id=p,path={}"),
        ("-object", "input-linux,id=i,evdev={}"),
        ("-device", "loader,file={},addr=0"),
        ("-device", "e1000,romfile={}"),
        ("-device", "usb-mtp,rootdir={}"),
        ("-device", "virtio-input-host-pci,evdev={}"),
        ("-device", "vhost-vdpa-device-pci,vhostdev={}"),
        ("-device", "ipmi-bmc-sim,id=b,sdrfile={}"),
        ("-plugin", "file={},arg=1"),
        ("-trace", "events={}"),
    ],
)
def test_is_looked_for(words: tuple[str, ...]) -> None:
    path = "/dev/x"
    command = CommandLine(["qemu", *(word.replace("{}", path) for word in words)])
    assert path in paths_to_read(command)
    assert all(file.what for file in named_files(command))


@pytest.mark.parametrize(
    "words",
    [
        ("-bios", "seabios.bin"),
        ("-L", "/firmware/that/need/not/be/there"),
        ("-serial", "file:/var/log/new"),
        ("-serial", "unix:/run/new,server=on,wait=off"),
        ("-chardev", "socket,id=c,path=/run/new,server=on"),
        ("-chardev", "file,id=c,path=/var/log/new"),
        ("-device", "e1000,romfile="),
    ],
)
def test_is_made_by_qemu_or_its_own(words: tuple[str, ...]) -> None:
    assert named_files(CommandLine(["qemu", *words])) == []
