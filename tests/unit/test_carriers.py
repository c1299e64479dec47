"""Interfaces as ``ip`` and ``bridge`` print them, and what is said of two hosts that carry a guest differently."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from migrator.core.process.guest_network import (
    GuestTaps,
    NetworkInterface,
    NetworkState,
    arrival_state,
    compare,
    learned_places,
)
from migrator.hosts.guest_network import parse_learned, parse_links

UP = ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"]


def shown(name: str, flags: list[str] = UP, kind: str = "", **more: Any) -> dict[str, Any]:
    data = more.pop("data", {})
    info = {"linkinfo": {"info_kind": kind, "info_data": data}} if kind else {}
    return {"ifname": name, "flags": flags, **info, **more}


def test_what_the_programs_print() -> None:
    links = json.dumps(
        [
            shown("eno1", master="vmbr0"),
            shown("eno1.7", kind="vlan", data={"id": 7}, link="eno1", master="vmbr7"),
            shown("vmbr0", kind="bridge", data={"vlan_filtering": 1}),
            shown("tap100i0", ["BROADCAST", "UP", "NO-CARRIER"], "tun", master="vmbr0", data={"type": "tap"}),
            {},
        ]
    )
    vlans = json.dumps(
        [
            {
                "ifname": "eno1",
                "vlans": [{"vlan": 1, "flags": ["PVID", "Egress Untagged"]}, {"vlan": 2, "vlanEnd": 9}],
            },
            {"ifname": "tap100i0", "vlans": [{"vlan": 7, "flags": ["PVID", "Egress Untagged"]}]},
        ]
    )
    found = parse_links(links, vlans)
    assert found["eno1"].vlans == {"1 PVID Egress Untagged", "2-9"}
    assert found["eno1.7"] == NetworkInterface(kind="vlan", up=True, carrier=True, master="vmbr7", vlan=7)
    assert found["vmbr0"].filters
    assert found["tap100i0"] == NetworkInterface(
        kind="tun", up=True, master="vmbr0", vlans=frozenset({"7 PVID Egress Untagged"})
    )
    assert parse_links("", "") == parse_links("no ip here", "[]") == {}


LINKS = {
    "out": NetworkInterface(up=True, carrier=True, master="br0"),
    "br0": NetworkInterface(kind="bridge", up=True, carrier=True),
    "t0": NetworkInterface(kind="tun", up=True, master="br0"),
}
HERE = GuestTaps(taps=("t0",), links=LINKS)


def there(**changes: NetworkInterface | None) -> GuestTaps:
    links = {**LINKS, **changes}
    return GuestTaps(taps=("t0",), links={name: link for name, link in links.items() if link is not None})


def codes(other: GuestTaps, here: GuestTaps = HERE) -> list[str]:
    return [each.code for each in compare(here, other, "beta")]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"t0": replace(LINKS["t0"], up=False)}, ["tap-down"]),
        ({"t0": replace(LINKS["t0"], master="")}, ["tap-bridge"]),
        ({"br0": replace(LINKS["br0"], up=False)}, ["bridge-down"]),
        ({"out": None}, ["bridge-uplink"]),
        ({"out": replace(LINKS["out"], carrier=False)}, ["bridge-uplink"]),
        ({"out": replace(LINKS["out"], kind="vlan", vlan=7)}, ["tap-vlan"]),
        ({"t0": replace(LINKS["t0"], vlans=frozenset({"7"}))}, []),  # the bridge does not look at it
        (
            {"t0": replace(LINKS["t0"], vlans=frozenset({"7"})), "br0": replace(LINKS["br0"], filters=True)},
            ["tap-vlan"],
        ),
        ({"t0": None}, []),  # said by whoever looks for it
    ],
)
def test_each_difference(changes: dict[str, NetworkInterface | None], found: list[str]) -> None:
    assert codes(there(**changes)) == found


def test_bridges_of_other_names_are_said_and_compared() -> None:
    links = {"br9": NetworkInterface(kind="bridge"), "t0": replace(LINKS["t0"], master="br9")}
    assert codes(GuestTaps(taps=("t0",), links=links)) == ["tap-bridge", "bridge-down", "bridge-uplink"]


def test_open_vswitch_shows_one_bridge_that_is_never_up() -> None:
    links = {
        "ovs-system": NetworkInterface(kind="openvswitch"),
        "t0": NetworkInterface(kind="tun", up=True, master="ovs-system"),
    }
    one = GuestTaps(taps=("t0",), links=links)
    assert one.state == (NetworkState.UP, "")
    assert codes(one, one) == []


def test_taps_are_paired_by_name_and_else_in_their_order() -> None:
    names = ("tap3", "web0", "tap9")
    links = {**LINKS, **dict.fromkeys((*names, "tap0", "tap1"), LINKS["t0"])}
    down = replace(LINKS["t0"], up=False)
    other = GuestTaps(taps=("tap0", "tap1", "web0"), links={**links, "tap1": down})
    (said,) = compare(GuestTaps(taps=names, links=links), other, "beta")
    assert said.message == "tap tap1 is down at beta; at the source it is up"


def test_what_cannot_be_read_is_held_against_nobody() -> None:
    assert codes(GuestTaps()) == codes(HERE, GuestTaps()) == []
    assert GuestTaps().state == GuestTaps(taps=("t0",)).state == (NetworkState.UNKNOWN, "")
    assert arrival_state(HERE, GuestTaps()) == (NetworkState.UNKNOWN, "")
    assert GuestTaps(taps=()).state == (NetworkState.NONE, "")
    assert arrival_state(HERE, there(t0=replace(LINKS["t0"], master=""))) == (
        NetworkState.DOWN,
        "tap t0 is on no bridge at its host; at the source it is on br0",
    )


TABLE = {
    "t0": [
        {"mac": "52:54:00:00:00:01", "flags": [], "master": "br0", "state": ""},
        {"mac": "52:54:00:00:00:02", "vlan": 20, "flags": [], "master": "br0", "state": "static"},
        {"mac": "da:16:16:13:b5:8a", "flags": [], "master": "br0", "state": "permanent"},
        {"mac": "33:33:00:00:00:01", "flags": ["self"], "state": "permanent"},
    ],
    "t1": [],
}
MAC = "52:54:00:00:00:01"


def test_what_a_bridge_has_learned_on_a_tap_is_without_the_taps_own_addresses() -> None:
    text = "\n".join(f"{name} {json.dumps(table)}" for name, table in TABLE.items())
    found = parse_learned(f"{text}\ngone \n")
    assert found == {"t0": {MAC, "52:54:00:00:00:02 in VLAN 20"}, "t1": frozenset()}


def learned(*addresses: str, **link: Any) -> GuestTaps:
    links = {**LINKS, "t0": replace(LINKS["t0"], **link)}
    return GuestTaps(taps=("t0",), links=links, learned={"t0": frozenset(addresses)})


NOWHERE = GuestTaps(learned={"t0": frozenset()})
UNREAD = GuestTaps(taps=("t0",), links=LINKS)


@pytest.mark.parametrize(
    ("before", "left", "there", "known", "lacking"),
    [
        (learned(MAC), NOWHERE, learned(MAC), [f"br0 at beta has {MAC} on t0"], []),
        (learned(MAC), NOWHERE, learned(), [], [f"br0 at beta has not learned {MAC} on t0"]),
        (learned(), NOWHERE, learned(), [], ["br0 at beta has not learned any address on t0"]),
        (GuestTaps(), GuestTaps(), learned(MAC), [f"br0 at beta has {MAC} on t0"], []),
        (
            learned(MAC),
            learned(MAC),
            learned(MAC),
            [f"br0 at beta has {MAC} on t0"],
            [f"br0 at the source still has {MAC} on t0"],
        ),
        (
            learned(MAC, f"{MAC} in VLAN 20"),
            NOWHERE,
            learned(MAC),
            [],
            [f"br0 at beta has not learned {MAC} in VLAN 20 on t0"],
        ),
        (learned(MAC), learned(MAC), UNREAD, [], []),  # there is no table to be asked
        (UNREAD, GuestTaps(), learned(learning=False), [], []),  # it is reached by what is sent everywhere
        (UNREAD, GuestTaps(), GuestTaps(), [], []),
    ],
)
def test_whether_bridges_know_that_a_guest_has_moved(
    before: GuestTaps, left: GuestTaps, there: GuestTaps, known: list[str], lacking: list[str]
) -> None:
    found = learned_places(before, left, there, "beta")
    assert (list(found.known), list(found.lacking)) == (known, lacking)


def test_a_few_addresses_of_many_are_named() -> None:
    many = learned(*(f"52:54:00:00:00:{number:02x}" for number in range(9)))
    (said,) = learned_places(many, NOWHERE, learned(), "beta").lacking
    assert said.endswith("52:54:00:00:00:03 and 5 more on t0")
