"""Ports that a QEMU listens at: read from its command line, compared with a host, exchanged, and reckoned with."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.core.inventory import Guest, Host, HostFacts
from migrator.core.model import Severity
from migrator.core.placement import Constraint, Fleet, NoHost, Placement, PlacementRequest, check, place
from migrator.core.process.listening import (
    ListeningPort,
    collides,
    listens,
    next_free_number,
    port_taken,
    without,
)
from migrator.core.process.replica import TargetEnvironment, TargetNetwork
from migrator.hosts import bound_ports
from migrator.qemu.cmdline import replicate
from migrator.qemu.current_devices import CurrentDevices

GIB = 2**30
HERE = TargetEnvironment(binary="/q", run_directory="/run/x")
SHAPES = [
    ("-vnc :1", ["tcp :5901"], "-vnc :2"),
    ("-vnc 127.0.0.1:1", ["tcp 127.0.0.1:5901"], "-vnc 127.0.0.1:2"),
    ("-vnc [::1]:1,password=on", ["tcp ::1:5901"], "-vnc [::1]:2,password=on"),
    ("-vnc :1,to=9", ["tcp :5901-5909"], None),
    ("-vnc :1,websocket=on", ["tcp :5901", "tcp :5701"], None),
    ("-display vnc=:1", ["tcp :5901"], "-vnc :2"),
    ("-vnc unix:/v.sock", [], None),
    ("-vnc none", [], None),
    ("-vnc 192.0.2.1:5500,reverse=on", [], None),
    ("-spice port=5930,addr=127.0.0.1", ["tcp 127.0.0.1:5930"], "-spice port=5931,addr=127.0.0.1"),
    ("-spice tls-port=5930,port=0", ["tcp :5930"], "-spice tls-port=5931,port=0"),
    ("-spice unix=on,addr=/s.sock", [], None),
    (
        "-netdev user,id=n,hostfwd=tcp::2222-:22",
        ["tcp 0.0.0.0:2222"],
        "-netdev user,id=n,hostfwd=tcp::2223-:22",
    ),
    (
        "-nic user,hostfwd=udp:127.0.0.1:53-:53,hostfwd=tcp::0-:1",
        ["udp 127.0.0.1:53"],
        "-nic user,hostfwd=udp:127.0.0.1:54-:53,hostfwd=tcp::0-:1",
    ),
    (
        '-netdev {"type":"user","id":"n","hostfwd":[{"str":"tcp::2222-:22"}]}',
        ["tcp 0.0.0.0:2222"],
        '-netdev {"type":"user","id":"n","hostfwd":[{"str":"tcp::2223-:22"}]}',
    ),
    ("-netdev socket,id=n,listen=:1234", ["tcp 0.0.0.0:1234"], "-netdev socket,id=n,listen=:1235"),
    ("-netdev socket,id=n,connect=192.0.2.1:1234", [], None),
    (
        "-netdev stream,id=n,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=7000",
        ["tcp 127.0.0.1:7000"],
        "-netdev stream,id=n,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=7001",
    ),
    (
        "-netdev dgram,id=n,local.type=inet,local.host=127.0.0.1,local.port=7000",
        ["udp 127.0.0.1:7000"],
        "-netdev dgram,id=n,local.type=inet,local.host=127.0.0.1,local.port=7001",
    ),
    (
        "-chardev socket,id=c,host=127.0.0.1,port=4444,server=on",
        ["tcp 127.0.0.1:4444"],
        "-chardev socket,id=c,host=127.0.0.1,port=4445,server=on,wait=off",
    ),
    ("-chardev socket,id=c,host=192.0.2.1,port=4444", [], None),
    (
        "-chardev udp,id=c,host=192.0.2.1,port=1,localport=4444",
        ["udp :4444"],
        "-chardev udp,id=c,host=192.0.2.1,port=1,localport=4445",
    ),
    ("-serial telnet:127.0.0.1:4444,server,nowait", ["tcp 127.0.0.1:4444"], None),
    ("-serial tcp::4444,server=on", ["tcp :4444"], "-serial tcp::4445,server=on,wait=off"),
    ("-serial tcp:192.0.2.1:4444", [], None),
    ("-serial udp:192.0.2.1:1@:4444", ["udp :4444"], "-serial udp:192.0.2.1:1@:4445"),
    ("-monitor mon:tcp::4444,server=on", ["tcp :4444"], None),
    ("-gdb tcp::1234 -s", [], None),
]


def said(option: str) -> tuple[str, ...]:
    name, _, text = option.partition(" ")
    return (name, text) if option != "-gdb tcp::1234 -s" else ("-gdb", "tcp::1234", "-s")


def port(text: str) -> ListeningPort:
    protocol, _, rest = text.partition(" ")
    address, _, numbers = rest.rpartition(":")
    first, _, last = numbers.partition("-")
    return ListeningPort(protocol, address or "::", int(first), int(last or 0))


@pytest.mark.parametrize(("option", "ports", "exchanged"), SHAPES)
def test_every_option_that_listens(option: str, ports: list[str], exchanged: str | None) -> None:
    wanted = tuple(map(port, ports))
    assert listens(said(option)) == wanted
    alone = replicate(["/q", *said(option)], machine="pc", current_devices=CurrentDevices(), place=HERE)
    assert not {each.code for each in alone.findings} & {"port-in-use", "address-missing"}
    if not wanted:
        return
    # Strangers have all of its range, or all but the last.
    every = {
        each.at(number) for each in wanted for number in range(each.number, max(each.last, each.number) + 1)
    }
    network = TargetNetwork(taken=every, addresses={"127.0.0.1", "::1"})
    there = replicate(
        ["/q", *said(option)],
        machine="pc",
        current_devices=CurrentDevices(),
        place=replace(HERE, network=network),
    )
    assert {each.code for each in there.findings if each.severity is Severity.ERROR} == {"port-in-use"}
    if exchanged is not None:
        spare = replace(HERE, network=replace(network, spare=True))
        moved = replicate(["/q", *said(option)], machine="pc", current_devices=CurrentDevices(), place=spare)
        assert [each.code for each in moved.findings if "port" in each.code] == ["port-moved"]
        assert moved.argv[1:3] == said(exchanged)
        again = replicate(
            moved.argv,
            machine="pc",
            current_devices=CurrentDevices(),
            place=replace(spare, run_directory="/run/y"),
        )
        assert not [each for each in again.findings if "port" in each.code]
    if wanted[0].last:
        room = TargetNetwork(taken=every - {wanted[0].at(wanted[0].last)})
        assert not replicate(
            ["/q", *said(option)],
            machine="pc",
            current_devices=CurrentDevices(),
            place=replace(HERE, network=room),
        ).findings


def test_a_range_that_is_full_goes_on_after_its_end() -> None:
    every = {ListeningPort("tcp", "0.0.0.0", number) for number in range(5901, 5912)}
    spare = replace(HERE, network=TargetNetwork(taken=every, spare=True))
    assert (
        ":12,to=9"
        in replicate(
            ["/q", "-vnc", ":1,to=9"], machine="pc", current_devices=CurrentDevices(), place=spare
        ).argv[2]
    )


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("tcp :1", "tcp 127.0.0.1:1", True),
        ("tcp 0.0.0.0:1", "tcp 127.0.0.1:1", True),
        ("tcp 0.0.0.0:1", "tcp :1", True),
        ("tcp 0.0.0.0:1", "tcp ::1:1", False),
        ("tcp localhost:1", "tcp ::1:1", True),
        ("tcp localhost:1", "tcp 192.0.2.1:1", False),
        ("tcp 192.0.2.1:1", "tcp 192.0.2.2:1", False),
        ("tcp :1", "udp :1", False),
        ("tcp :1", "tcp :2", False),
    ],
)
def test_whose_port_is_in_whose_way(one: str, other: str, meet: bool) -> None:
    assert collides(port(one), port(other)) is collides(port(other), port(one)) is meet


def test_the_kernels_tables() -> None:
    text = """=tcp
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
=tcp6
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
   1: 00000000000000000000000001000000:170D 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
   2: 0000000000000000FFFF00000100007F:170E 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
=udp
  12: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0
"""
    assert bound_ports.parse_sockets(text) == {
        port("tcp 127.0.0.1:8080"),
        port("tcp 0.0.0.0:22"),
        port("tcp :22"),
        port("tcp ::1:5901"),
        port("tcp 127.0.0.1:5902"),
        port("udp 127.0.0.1:53"),
    }


def test_what_ss_says_of_them() -> None:
    text = """udp UNCONN 0      0        127.0.0.54:53   0.0.0.0:*
udp UNCONN 0      0      10.0.0.1%eth0:68   0.0.0.0:*
udp UNCONN 0      0      [fe80::1]%eth0:546          [::]:*
tcp LISTEN 0      4096         0.0.0.0:22 0.0.0.0:*
tcp LISTEN 0      4096               *:2222             *:*
tcp LISTEN 0      4096            [::]:23            [::]:*
tcp LISTEN 0      4096            [::1]:5901            [::]:*
tcp LISTEN 0      4096  [::ffff:127.0.0.1]:5902            *:*
"""
    assert bound_ports.parse_sockets(text) == {
        port("udp 127.0.0.54:53"),
        port("udp 10.0.0.1:68"),
        port("udp fe80::1:546"),
        port("tcp 0.0.0.0:22"),
        port("tcp :2222"),
        port("tcp :23"),
        port("tcp ::1:5901"),
        port("tcp 127.0.0.1:5902"),
    }


def test_an_address_that_the_target_has_not() -> None:
    def code(option: str, *addresses: str) -> list[str]:
        place = replace(HERE, network=TargetNetwork(addresses=addresses))
        return [
            each.code
            for each in replicate(
                ["/q", *said(option)], machine="pc", current_devices=CurrentDevices(), place=place
            ).findings
        ]

    assert code("-vnc 192.0.2.7:1", "127.0.0.1", "192.0.2.8") == ["address-missing"]
    assert code("-vnc 192.0.2.7:1", "127.0.0.1", "192.0.2.7") == []
    assert code("-vnc [2001:db8::1]:1", "127.0.0.1") == ["address-missing"]
    assert code("-vnc console.example:1", "127.0.0.1") == []
    assert code("-vnc 127.0.0.5:1", "127.0.0.1") == []
    assert code("-vnc 192.0.2.7:1") == [], "what could not be read is not held against it"


def test_of_a_hosts_ports_those_of_its_guests_are_no_strangers() -> None:
    ports = {port("tcp 0.0.0.0:5903"), port("tcp :22"), port("tcp 127.0.0.1:2222")}
    guests = [port("tcp :5901-5909"), port("tcp 127.0.0.1:2222")]
    assert without(ports, guests) == {port("tcp :22")}


def test_the_next_free_one() -> None:
    ports = {port("tcp :5901"), port("tcp 0.0.0.0:5902")}
    assert port_taken(port("tcp 127.0.0.1:5901"), ports) == port("tcp :5901")
    assert next_free_number(port("tcp 127.0.0.1:5901"), ports) == 5903
    assert next_free_number(port("tcp :65535"), {port("tcp :65535")}) == 0


class TestPlacement:
    def host(self, name: str, *taken: str, **fields: object) -> Host:
        facts = HostFacts(
            memory_total_bytes=64 * GIB,
            kvm=True,
            ports=frozenset(map(port, taken)),
            addresses=frozenset({"127.0.0.1", "192.0.2.1"}),
        )
        return replace(Host(name=name, facts=facts), **fields)  # type: ignore[arg-type]

    def guest(self, key: str, *ports: str, on: str = "a", **fields: object) -> Guest:
        made = Guest(key=key, host=on, memory_bytes=GIB, listens=tuple(map(port, ports)))
        return replace(made, **fields)  # type: ignore[arg-type]

    def places(self, hosts: list[Host], guests: list[Guest], **how: bool) -> dict[str, str | None]:
        fleet = Fleet(hosts=hosts, guests=guests, leaving=["a"])
        answers = place(fleet, [PlacementRequest(guest=one, **how) for one in guests if one.host == "a"])  # type: ignore[arg-type]
        return {key: each.host if isinstance(each, Placement) else None for key, each in answers.items()}

    def test_two_that_want_one_port_get_two_hosts(self) -> None:
        hosts = [self.host(name) for name in "abc"]
        guests = [self.guest(name, "tcp 0.0.0.0:2222") for name in ("x", "y")]
        found = self.places(hosts, guests)
        assert set(found.values()) == {"b", "c"}
        third = self.places(hosts, [*guests, self.guest("z", "tcp 127.0.0.1:2222")])
        assert sorted(map(str, third.values())) == ["None", "b", "c"]
        assert sorted(self.places(hosts, [*guests, self.guest("z", "tcp ::1:2222")]).values(), key=str) != [
            None
        ]

    def test_a_guest_that_is_there_or_a_stranger_keeps_it_off(self) -> None:
        hosts = [self.host("a"), self.host("b", "tcp :5901"), self.host("c")]
        guests = [self.guest("x", "tcp 127.0.0.1:5901"), self.guest("y", "tcp 127.0.0.1:5901", on="c")]
        assert self.places(hosts, guests) == {"x": None}
        fleet = Fleet(hosts=hosts, guests=guests)
        (answer,) = place(fleet, [PlacementRequest(guest=guests[0])]).values()
        assert isinstance(answer, NoHost)
        assert answer.hosts == {Constraint.PORT: 2}
        assert "2 have no room for port tcp 127.0.0.1:5901" in answer.reason
        (said,) = [
            each
            for each in check(fleet, PlacementRequest(guest=guests[0]), "b")
            if each.constraint is Constraint.PORT
        ]
        assert (said.fits, said.text) == (False, "tcp 127.0.0.1:5901 is taken there")

    def test_one_moves_out_of_the_others_way(self) -> None:
        hosts = [self.host("a"), self.host("b"), self.host("c", labels={"gpu": "yes"})]
        guests = [
            self.guest("x", "tcp :5901", priority=9),
            self.guest("y", "tcp :5901", requires={"gpu": "yes"}),
            self.guest("z", "tcp :5902"),
        ]
        hosts[2] = replace(hosts[2], memory_bytes=128 * GIB)  # the least used one: where x would go
        assert self.places(hosts, guests) | {"z": ""} == {"x": "b", "y": "c", "z": ""}

    def test_a_group_that_cannot_be_on_one_host_is_broken_up(self) -> None:
        hosts = [self.host(name) for name in "abc"]
        guests = [self.guest(name, "tcp :5901", group="shop") for name in ("x", "y")]
        assert set(self.places(hosts, guests).values()) == {"b", "c"}

    def test_one_that_may_have_another_port_goes_anywhere(self) -> None:
        hosts, guest = [self.host("a"), self.host("b", "tcp :5901")], self.guest("x", "tcp :5901")
        assert self.places(hosts, [guest], spare_ports=True) == {"x": "b"}
        assert self.places(hosts, [replace(guest, ports="any")]) == {"x": "b"}
        spare = [hosts[0], replace(hosts[1], spare_ports=True)]
        assert self.places(spare, [guest]) == {"x": "b"}
        assert self.places(spare, [replace(guest, ports="keep")]) == {"x": None}

    def test_a_host_without_the_address_is_not_chosen(self) -> None:
        hosts, guest = [self.host("a"), self.host("b")], self.guest("x", "tcp 192.0.2.9:5901")
        assert self.places(hosts, [guest]) == {"x": None}
        assert self.places(hosts, [self.guest("x", "tcp 192.0.2.1:5901")]) == {"x": "b"}

    @given(
        st.lists(
            st.tuples(st.sampled_from(("127.0.0.1:1", ":1", "127.0.0.1:2", "::1:2")), st.integers(1, 9)),
            max_size=7,
        ),
        st.sets(st.sampled_from(("tcp :1", "tcp 127.0.0.1:2")), max_size=1),
    )
    @settings(max_examples=60)
    def test_nobody_gets_a_port_that_another_has(
        self, wanted: list[tuple[str, int]], taken: set[str]
    ) -> None:
        hosts = [
            replace(self.host(name, *(taken if name == "b" else ())), memory_bytes=20 * GIB) for name in "abc"
        ]
        guests = [
            replace(self.guest(f"g{n}", f"tcp {port}"), memory_bytes=size * GIB)
            for n, (port, size) in enumerate(wanted)
        ]
        found = self.places(hosts, guests)
        for name in "bc":
            there = [one.listens[0] for one in guests if found[one.key] == name]
            there += [port(text) for text in taken] if name == "b" else []
            assert not any(collides(one, other) for one, other in combinations(there, 2))

    def test_a_guest_is_the_same_after_the_journal(self) -> None:
        guest = self.guest("x", "tcp :5901-5909", ports="any")
        assert Guest.from_fields(guest.fields()) == guest
        old = {key: value for key, value in guest.fields().items() if key not in ("listens", "ports")}
        assert Guest.from_fields(old).listens == ()
