"""The destination's command line: what the guest sees stays, what belongs to the process is made anew."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.core.model import Severity
from migrator.core.process.options import Value, escape, read, write
from migrator.core.process.replica import Replica, TargetEnvironment
from migrator.errors import Refused
from migrator.qemu.backends import chardev_add, netdev_add, netdevs
from migrator.qemu.block_graph import Nodes, block_nodes
from migrator.qemu.cmdline import paths, replicate
from migrator.qemu.current_command_line import lacks_devices
from migrator.qemu.current_devices import CurrentDevices

RUN = "/run/migrator/guests/m1-abc123"
HERE = TargetEnvironment(binary="/usr/bin/qemu", run_directory=RUN)
#: What every result has at its end.
OURS = (
    *("-pidfile", f"{RUN}/qemu.pid"),
    *("-chardev", f"socket,id=migrator-control,server=on,wait=off,path={RUN}/control.qmp"),
    *("-mon", "chardev=migrator-control,mode=control"),
    *("-chardev", f"socket,id=migrator-rescue,server=on,wait=off,path={RUN}/rescue.qmp"),
    *("-mon", "chardev=migrator-rescue,mode=control", "-S", "-incoming", "defer"),
)
MACHINE = ("-machine", "pc-q35-7.2")


def made(
    *words: str, current_devices: CurrentDevices | None = None, place: TargetEnvironment = HERE
) -> Replica:
    return replicate(
        ("qemu", *MACHINE, *words),
        machine="pc-q35-7.2",
        current_devices=current_devices or CurrentDevices(),
        place=place,
    )


def kept(
    *words: str, current_devices: CurrentDevices | None = None, place: TargetEnvironment = HERE
) -> list[str]:
    """What became of the words, without what is always added."""
    replica = made(*words, current_devices=current_devices, place=place)
    assert replica.findings == ()
    assert replica.argv[:3] == ("/usr/bin/qemu", *MACHINE)
    assert replica.argv[-len(OURS) :] == OURS
    return list(replica.argv[3 : -len(OURS)])


def codes(*words: str, place: TargetEnvironment = HERE) -> dict[str, Severity]:
    findings = made(*words, place=place).findings
    for finding in findings:
        assert finding.message.isprintable()
        assert finding.remedy
    return {finding.code: finding.severity for finding in findings}


@pytest.mark.parametrize(
    "words",
    [
        ("-name", "guest=a,,b 'c'\n$(d),debug-threads=on", "-uuid", "1-2"),
        ("-m", "size=1G,slots=4,maxmem=8G", "-smp", "2,maxcpus=4", "-cpu", "host,-x2apic"),
        ("-device", "virtio-blk-pci,id=a,drive=d,addr=0x4", "-device", '{"driver": "e1000", "id": "n"}'),
        ("-blockdev", "driver=file,node-name=f,filename=/a,,b.img", "-drive", "file=/x.img,if=virtio"),
        ("-sandbox", "on,spawn=deny", "-no-shutdown", "-nodefaults", "-enable-kvm", "-snapshotx", "value"),
        ("-chardev", "socket,id=c,path=/run/client.sock,reconnect=5", "-serial", "chardev:c"),
        ("-serial", "null", "-monitor", "none", "-vnc", "none", "-display", "none"),
        ("-mon", "chardev=h,mode=readline", "-chardev", "pty,id=h"),
        ("disk.img",),
        ("-rtc", "base=utc", "-boot", "once=d", "-global", "kvm-pit.lost_tick_policy=delay"),
    ],
)
def test_what_the_guest_sees_stays_word_for_word(words: tuple[str, ...]) -> None:
    assert kept(*words) == list(words)


@pytest.mark.parametrize(
    "words",
    [
        ("-qmp", "unix:/a.sock,server=on,wait=off"),
        ("-qmp-pretty", "tcp:127.0.0.1:4444,server"),
        ("-chardev", "socket,id=m,path=/m.sock,server=on", "-mon", "chardev=m,mode=control"),
        ("-chardev", "socket,id=m,path=/m.sock,server=on", "-mon", "m,mode=control,pretty=on"),
        ("-chardev", "socket,id=m,path=/m.sock,server=on", "-qmp", "chardev:m"),
        ("-qmp-pretty", "chardev:m", "-chardev", "socket,id=m,path=/m.sock,server=on"),
        ("-S",),
        ("--daemonize", "-pidfile", "/run/a.pid", "-D", "/var/log/a.log"),
        ("-incoming", "tcp:0:4444", "-loadvm", "snap"),
    ],
)
def test_what_belongs_to_the_process_is_left_out(words: tuple[str, ...]) -> None:
    assert kept(*words) == []


def test_a_character_device_that_a_qmp_monitor_shares_stays() -> None:
    words = ("-chardev", "pty,id=m,mux=on", "-mon", "chardev=m,mode=control", "-serial", "chardev:m")
    assert kept(*words) == [*words[:2], *words[4:]]


@pytest.mark.parametrize(
    ("words", "machine"),
    [
        (("-machine", "q35,accel=kvm,usb=off"), ["-machine", "pc-q35-7.2,accel=kvm,usb=off"]),
        (("-M", "q35"), ["-machine", "pc-q35-7.2"]),
        (("-machine", "accel=tcg,type=pc"), ["-machine", "accel=tcg,type=pc-q35-7.2"]),
        (("-machine", "usb=off"), ["-machine", "usb=off", "-machine", "type=pc-q35-7.2"]),
        ((), ["-machine", "type=pc-q35-7.2"]),
    ],
)
def test_the_alias_of_the_machine_is_resolved(words: tuple[str, ...], machine: list[str]) -> None:
    replica = replicate(("qemu", *words), machine="pc-q35-7.2", current_devices=CurrentDevices(), place=HERE)
    assert list(replica.argv[1 : -len(OURS)]) == machine


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("-serial", "unix:/s.sock,server"), ("-serial", f"unix:{RUN}/s.sock,server,wait=off")),
        (
            ("-serial", "mon:unix:/s.sock,server,nowait"),
            ("-serial", f"mon:unix:{RUN}/s.sock,server,wait=off"),
        ),
        (
            ("-chardev", "socket,id=c,path=/s.sock,server=on,wait=on"),
            ("-chardev", f"socket,id=c,path={RUN}/s.sock,server=on,wait=off"),
        ),
        (("-vnc", "unix:/s.sock,password=on"), ("-vnc", f"unix:{RUN}/s.sock,password=on")),
        (("-spice", "unix=on,addr=/s.sock"), ("-spice", f"unix=on,addr={RUN}/s.sock")),
        (
            ("-netdev", "dgram,id=n,local.type=unix,local.path=/s.sock"),
            ("-netdev", f"dgram,id=n,local.type=unix,local.path={RUN}/s.sock"),
        ),
        (
            ("-netdev", "stream,id=n,server=on,addr.type=unix,addr.path=/s.sock"),
            ("-netdev", f"stream,id=n,server=on,addr.type=unix,addr.path={RUN}/s.sock"),
        ),
    ],
)
@pytest.mark.parametrize("why", ["occupied", "homeless"])
def test_a_socket_that_cannot_be_had_there_goes_into_the_run_directory(
    before: tuple[str, ...], after: tuple[str, ...], why: str
) -> None:
    assert paths(("qemu", *before)) == ("/s.sock",)
    place = (
        replace(HERE, occupied={"/s.sock"})
        if why == "occupied"
        else replace(HERE, missing_directories={"/s.sock"})
    )
    assert kept(*before, place=place) == list(after)
    free = kept(*before)
    assert "/s.sock" in free[1]
    assert "wait=on" not in free[1]


def test_json_is_understood() -> None:
    netdev = {"type": "dgram", "id": "n", "local": {"type": "unix", "path": "/s.sock"}}
    place = replace(HERE, occupied={"/s.sock"})
    (_, text) = kept("-netdev", json.dumps(netdev), place=place)
    assert json.loads(text) == {**netdev, "local": {"type": "unix", "path": f"{RUN}/s.sock"}}
    assert codes("-netdev", '{"type": "tap", "id": "n", "fd": "7"}') == {"passed-descriptor": Severity.ERROR}


def test_sockets_of_one_name_stay_apart_and_names_are_short_enough() -> None:
    long = "/x/" + "é" * 80 + ".sock"
    old = ["/a/c.sock", "/b/c.sock", "relative.sock", long, "/a/control.qmp"]
    words = [word for path in old for word in ("-serial", f"unix:{path},server=on,wait=off")]
    place = replace(HERE, occupied=set(old))
    replica = made(*words, place=place)
    assert set(replica.moved) == set(old)
    new = list(replica.moved.values())
    assert len({*new, HERE.control, HERE.rescue}) == len(old) + 2
    assert all(len(path.encode()) <= 107 and path.startswith(f"{RUN}/") for path in new)


def test_a_socket_of_the_old_run_directory_never_stays_there() -> None:
    first = made("-vnc", "unix:/v.sock", place=replace(HERE, occupied={"/v.sock"})).argv
    assert f"unix:{RUN}/v.sock" in first
    other = TargetEnvironment(binary="/usr/bin/qemu", run_directory="/run/other")
    again = replicate(first, machine="pc-q35-7.2", current_devices=CurrentDevices(), place=other).argv
    assert "unix:/run/other/v.sock" in again
    assert not [word for word in again if RUN in word]


def test_what_the_guest_says_goes_on_in_the_same_file() -> None:
    after = kept("-serial", "file:/a,b.log", "-chardev", "file,id=f,path=/f.log,append=off")
    assert after == [
        *(
            "-chardev",
            "file,id=serial0,append=on,path=/a,,b.log",
            "-serial",
            "chardev:serial0",
        ),
        *("-chardev", "file,id=f,path=/f.log,append=on"),
    ]


def test_a_terminal_is_replaced_by_nothing() -> None:
    assert kept("-serial", "mon:stdio", "-monitor", "stdio", "-chardev", "stdio,id=c,signal=off") == [
        *("-serial", "null", "-monitor", "none", "-chardev", "null,id=c,signal=off")
    ]
    replica = made("-nographic")
    assert replica.argv[3:5] == ("-display", "none")
    assert "graphics=off" in replica.argv


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("-netdev", "tap,id=n,fd=7"), "passed-descriptor"),
        (("-netdev", "tap,id=n,fds=7:8,vhostfds=9:10"), "passed-descriptor"),
        (("-nic", "tap,fd=7"), "passed-descriptor"),
        (("-chardev", "socket,id=c,fd=3,server=on"), "passed-descriptor"),
        (("-add-fd", "fd=3,set=1"), "passed-descriptor"),
        (("-blockdev", "driver=file,node-name=f,filename=/dev/fdset/1"), "passed-descriptor"),
        (("-readconfig", "/dev/fd/5"), "passed-descriptor"),
        (("-readconfig", "-"), "passed-descriptor"),
        (("-netdev", "stream,id=n,addr.type=fd,addr.str=3"), "passed-descriptor"),
        (("-device", "vhost-vsock-pci,guest-cid=3,vhostfd=5"), "passed-descriptor"),
        (("-netdev", "vhost-user,id=n,chardev=c"), "vhost-user"),
        (("-device", "vhost-user-blk-pci,id=b,chardev=c"), "vhost-user"),
        (("-tpmdev", "emulator,id=t,chardev=c"), "tpm"),
        (("-snapshot",), "snapshot"),
        (("-drive", "file=/a.img,snapshot=on"), "snapshot"),
        (("-preconfig",), "preconfig"),
    ],
)
def test_what_cannot_be_had_again_is_refused(words: tuple[str, ...], code: str) -> None:
    assert codes(*words) == {code: Severity.ERROR}


@pytest.mark.parametrize(
    ("words", "code"),
    [(("-readconfig", "/etc/q.cfg"), "config-file"), (("-s",), "gdb"), (("-sdl",), "display")],
)
def test_what_stays_behind_is_told(words: tuple[str, ...], code: str) -> None:
    assert codes(*words) == {code: Severity.WARNING}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("-netdev", "user,id=n,hostfwd=tcp::2222-:22"), "port-in-use"),
        (("-netdev", "user,id=n,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=udp::53-:53"), "port-in-use"),
        (("-netdev", '{"type": "user", "id": "n", "hostfwd": [{"str": "tcp::22-:22"}]}'), "port-in-use"),
        (("-serial", "telnet:127.0.0.1:4444,server,nowait"), "port-in-use"),
        (("-chardev", "socket,id=c,host=::,port=4444,server=on"), "port-in-use"),
        (("-vnc", ":1"), "port-in-use"),
        (("-spice", "port=5901,disable-ticketing=on"), "port-in-use"),
        (("-netdev", "tap,id=n,ifname=tap7,script=no"), "tap-in-use"),
        (("-nic", "tap,ifname=tap7,script=no"), "tap-in-use"),
        (("-net", "tap,ifname=tap7,script=no"), "tap-in-use"),
    ],
)
def test_what_the_source_holds_on_the_same_machine_is_refused_there_alone(
    words: tuple[str, ...], code: str
) -> None:
    same = replace(HERE, same_machine=True, same_network=True)
    assert codes(*words, place=same) == {code: Severity.ERROR}
    assert codes(*words) == {}


def test_any_port_can_be_had_twice() -> None:
    same = replace(HERE, same_machine=True, same_network=True)
    assert codes("-netdev", "user,id=n,hostfwd=tcp:127.0.0.1:0-:22", "-vnc", ":1,to=9", place=same) == {}


def test_a_helper_that_somebody_started_at_the_target_will_do() -> None:
    words = ("-chardev", "socket,id=c,path=/v.sock", "-netdev", "vhost-user,id=n,chardev=c")
    there = replace(HERE, occupied={"/v.sock"})
    own = replace(HERE, occupied={"/v.sock"}, same_machine=True)
    assert codes(*words) == {"vhost-user": Severity.ERROR}
    assert codes(*words, place=own) == {"vhost-user": Severity.ERROR}
    assert codes(*words, place=there) == {}


def test_memory_in_a_file_is_not_shared_by_both() -> None:
    words = ("-object", "memory-backend-file,id=m,size=1G,mem-path=/dev/shm/m,share=on")
    there = replace(HERE, occupied={"/dev/shm/m"})
    assert codes(*words, place=there) == {"memory-file": Severity.ERROR}
    assert codes(*words) == {}


def test_what_was_unplugged_is_left_out_and_the_rest_keeps_its_place() -> None:
    words = (
        *(
            "-device",
            "virtio-serial-pci,id=s",
            "-device",
            "virtserialport,id=a",
            "-device",
            "virtserialport,id=b",
        ),
        *("-netdev", "user,id=gone", "-object", "rng-random,id=r", "-blockdev", "null-co,node-name=n"),
        *("-drive", "if=none,id=d,file=/x", "-set", "device.a.name=x", "-chardev", "null,id=c"),
        *("-device", "e1000", "-set", "device.b.name=y"),
    )
    current_devices = CurrentDevices(
        devices={"s": "virtio-serial-pci", "b": "virtserialport"},
        objects={},
        netdevs={},
        chardevs={},
        nodes=Nodes(nodes={}, children={}),
        drives=(),
        places={"s": {"addr": "2.0", "bus": "pcie.0"}, "b": {"nr": "2", "bus": "s.0"}},
    )
    assert lacks_devices(read(words), machine="pc-q35-7.2", current_devices=current_devices)
    assert not lacks_devices(read(words), machine="pc-q35-7.2", current_devices=CurrentDevices())
    assert kept(*words, current_devices=current_devices) == [
        *(
            "-device",
            "virtio-serial-pci,id=s,addr=2.0,bus=pcie.0",
            "-device",
            "virtserialport,id=b,nr=2,bus=s.0",
        ),
        *("-device", "e1000", "-set", "device.b.name=y"),
    ]


def test_places_in_json_have_their_types() -> None:
    current_devices = CurrentDevices(
        devices={"b": "virtserialport", "p": "x"},
        places={"b": {"nr": "2", "bus": "s.0"}, "p": {"addr": "3.0", "port": "1"}},
    )
    after = kept(
        *("-device", "e1000,id=gone", "-device", '{"driver": "virtserialport", "id": "b"}'),
        *("-device", '{"driver": "x", "id": "p"}'),
        current_devices=current_devices,
    )
    assert json.loads(after[1]) == {"driver": "virtserialport", "id": "b", "nr": 2, "bus": "s.0"}
    assert json.loads(after[3]) == {"driver": "x", "id": "p", "addr": "3.0", "port": "1"}


VALUES = st.text(alphabet=st.sampled_from(list("ab=,.-/ \n'\"$é")), min_size=1, max_size=6)
WORDS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                ("-S",),
                ("-nographic",),
                ("-qmp", "unix:/q.sock,server"),
                ("-serial", "unix:/run/a/c.sock,server=on"),
                ("-serial", "unix:/run/b/c.sock,server=on"),
                ("-serial", "file:/l.log"),
                ("-serial", "mon:file:/l.log"),
                ("-serial", "mon:stdio"),
                ("-M", "q35"),
                ("-machine", "usb=off"),
                ("-L", "/firmware"),
                ("-chardev", "socket,id=m,path=/m,server", "-mon", "m,mode=control"),
                ("-vnc", "unix:/v.sock"),
                ("-display", "gtk"),
                ("disk.img",),
            ]
        ),
        st.tuples(st.just("-name"), VALUES.map(lambda text: "guest=" + escape(text))),
    ),
    max_size=8,
)


@given(WORDS, st.booleans())
def test_a_guest_may_move_for_ever(groups: list[tuple[str, ...]], shared: bool) -> None:
    """Moved once more, a command line is the same but for where the process lives."""
    argv: tuple[str, ...] = ("qemu", *(word for group in groups for word in group))
    seen = []
    for move in range(4):
        run = f"/run/migrator/guests/move-{move}"
        occupied = set(paths(argv)) if shared else set()
        place = TargetEnvironment(binary="/bin/qemu", run_directory=run, occupied=occupied)
        argv = replicate(argv, machine="pc-q35-7.2", current_devices=CurrentDevices(), place=place).argv
        seen.append([word.replace(run, "RUN") for word in argv])
    assert [sorted(each) for each in seen[1:]] == [sorted(seen[0])] * 3
    assert seen[1] == seen[2] == seen[3]


@given(st.lists(st.tuples(st.sampled_from(["path", "id", "server"]), VALUES), min_size=1, max_size=4), VALUES)
def test_values_are_read_as_they_were_written(pairs: list[tuple[str, str]], new: str) -> None:
    text = ",".join(f"{key}={escape(value)}" for key, value in pairs)
    value = Value(text, first="backend")
    assert str(value) == text
    assert value.get(pairs[-1][0]) == pairs[-1][1]
    value.set("path", new)
    assert Value(str(value), first="backend").get("path") == new
    assert Value(str(value), first="backend").all("path") == [new]


@given(st.lists(st.sampled_from(["-S", "-name", "--uuid", "-m", "x", "1"])))
def test_options_are_written_as_they_were_read(words: list[str]) -> None:
    once = write(read(words))
    assert write(read(once)) == once


class TestBackends:
    SHOWN = (
        "n1d: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:11:22:33\r\n"
        " \\ n1: index=0,type=user,net=10.0.2.0,restrict=off\r\n"
        "t1: index=0,type=tap,ifname=tap 0,script=/etc/qemu-ifup,downscript=no\r\n"
        "t1: index=1,type=tap,ifname=tap 0,script=/etc/qemu-ifup,downscript=no\r\n"
        "b1: index=0,type=tap,helper=/usr/lib/qemu/qemu-bridge-helper,br=br0\r\n"
        "f1: index=0,type=tap,fd=9\r\n"
        "hub 0\r\n \\ hub0port0: #net1: index=0,type=nic\r\n"
    )

    def test_network_backends_are_read_and_made_again(self) -> None:
        found = netdevs(self.SHOWN)
        assert sorted(found) == ["b1", "f1", "n1", "t1"]
        assert netdev_add("n1", found["n1"], vhost=False) == (
            "netdev_add",
            {"id": "n1", "type": "user", "net": "10.0.2.0/24", "restrict": False},
        )
        tap = {"id": "t1", "type": "tap", "ifname": "tap 0", "script": "/etc/qemu-ifup", "downscript": "no"}
        assert netdev_add("t1", found["t1"], vhost=True) == (
            "netdev_add",
            {**tap, "vhost": True, "queues": 2},
        )
        assert netdev_add("b1", found["b1"], vhost=False)[1]["br"] == "br0"
        with pytest.raises(Refused, match="does not show enough of it"):
            netdev_add("f1", found["f1"], vhost=False)

    def test_character_devices(self) -> None:
        command, arguments = chardev_add("c", "disconnected:unix:/a,b.sock,server=on", "/run/x")
        assert command == "chardev-add"
        assert arguments["backend"]["data"]["addr"]["data"]["path"] == "/run/x/c.sock"
        with pytest.raises(Refused):
            chardev_add("c", "file", "/run/x")

    @staticmethod
    def nodes(**more: object) -> Nodes:
        cache = {"direct": True, "no-flush": False, "writeback": True}
        plain = {"ro": False, "cache": cache, "detect_zeroes": "off", **more}
        return block_nodes(
            [
                {"node-name": "top", "drv": "qcow2", "file": "/top.qcow2", **plain},
                {"node-name": "#block1", "drv": "file", "file": "/top.qcow2", **plain},
                {"node-name": "base", "drv": "raw", "file": "/base.img", **plain},
                {"node-name": "basefile", "drv": "file", "file": "/base.img", **plain},
                {"node-name": "#block2", "drv": "raw", "file": "nbd://h:1/x%20y", **plain},
                {"node-name": "#block3", "drv": "nbd", "file": "nbd://h:1/x%20y", **plain},
            ],
            {
                "nodes": [
                    {"id": n, "type": "block-driver", "name": name}
                    for n, name in enumerate(["top", "#block1", "base", "basefile", "#block2", "#block3"])
                ],
                "edges": [
                    {"parent": 0, "child": 1, "name": "file"},
                    {"parent": 0, "child": 2, "name": "backing"},
                    {"parent": 2, "child": 3, "name": "file"},
                    {"parent": 4, "child": 5, "name": "file"},
                ],
            },
            [{"device": "drive0", "inserted": {"node-name": "#block2"}}, {"device": ""}],
        )

    def test_a_chain_is_made_from_below(self) -> None:
        commands = list(self.nodes().commands("top", ()))
        assert [arguments["node-name"] for _, arguments in commands] == ["basefile", "base", "top"]
        assert commands[2][1]["backing"] == "base"
        assert commands[2][1]["file"]["filename"] == "/top.qcow2"
        assert [arguments["node-name"] for _, arguments in self.nodes().commands("top", ("basefile",))] == [
            *("base", "top")
        ]

    def test_a_drive_without_a_node_of_a_name_takes_its_own(self) -> None:
        ((_, arguments),) = self.nodes().commands("drive0", ())
        assert arguments["node-name"] == "drive0"
        assert arguments["file"]["server"] == {"type": "inet", "host": "h", "port": "1"}
        assert arguments["file"]["export"] == "x y"

    def test_what_is_encrypted_is_refused(self) -> None:
        with pytest.raises(Refused, match="it is encrypted"):
            list(self.nodes(encrypted=True).commands("top", ()))
