"""What QEMU says of block nodes that it named, in names that people know."""

from __future__ import annotations

from typing import Any

from migrator.qemu.block_owners import made_up, with_known_names

#: As QEMU 7.2 says it of -drive id=usb,file=fat:rw:…: backend, raw, vvfat, qcow and its file.
SAID = "The qcow format used by node '#block354' does not support live migration"
NODES = ((1, "usb"), (2, "#block482"), (3, "#block084"), (4, "#block354"), (5, "#block299"))


def graph(*nodes: tuple[int, str]) -> dict[str, Any]:
    edges = [{"parent": parent, "child": parent + 1, "name": "file"} for parent, _ in nodes[:-1]]
    kinds = {False: "block-driver", True: "block-backend"}
    return {
        "nodes": [{"id": number, "name": name, "type": kinds[number == 1]} for number, name in nodes],
        "edges": edges,
    }


def test_node_that_qemu_named_is_called_by_its_disk() -> None:
    assert with_known_names([SAID], graph(*NODES)) == (
        "The qcow format used by a part of 'usb' does not support live migration",
    )


def test_nearest_name_that_somebody_gave_is_taken() -> None:
    nodes = [(number, "folder" if number == 3 else name) for number, name in NODES]
    assert with_known_names([SAID], graph(*nodes))[0].startswith(
        "The qcow format used by a part of 'folder' "
    )


def test_what_belongs_to_nothing_known_stays_as_it_is() -> None:
    for known in (graph(), graph((4, "#block354")), graph((1, ""), (2, "#block354"))):
        assert with_known_names([SAID], known) == (SAID,)
    loop = graph((4, "#block354"), (5, "#block5"))
    loop["edges"].append({"parent": 5, "child": 4, "name": "file"})
    assert with_known_names([SAID], loop) == (SAID,)


def test_other_reasons_are_not_touched() -> None:
    for said in (
        "a device says no",
        "The vvfat (rw) format used by node 'folder' does not support live migration",
    ):
        assert not made_up(said)
        assert with_known_names([said], graph(*NODES)) == (said,)
    assert made_up(SAID)
