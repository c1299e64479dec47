"""What a QEMU answers is checked against a table: it has every command that we send, and honest answers pass."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import migrator
from migrator.errors import StrangeAnswer
from migrator.qemu.block_graph import block_nodes
from migrator.qemu.replies import REPLIES, wrong_with, wrong_with_event
from migrator.testing import recorded

SOURCE = Path(migrator.__file__).parent
#: Who speaks to a QEMU, and with what.
SPEAK = {"execute", "query", "ask", "_ask", "_add"}
VERSIONS = ("7.2", "10.0")
#: Words that are commands of QEMU's too, and here a kind of device and an option.
NOT_SENT = {"balloon", "add-fd"}


def commands_of_qemu() -> frozenset[str]:
    lists = (recorded.read(version)["answers"]["query-commands"] for version in VERSIONS)
    return frozenset(each["name"] for commands in lists for each in commands)


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", node.value


def sent() -> Iterator[tuple[str, str]]:
    # No other package says a command of QMP: see test_qmp_only_in_qemu.
    for path in (SOURCE / "qemu").rglob("*.py"):
        if path.name == "guest_agent.py":
            continue  # which talks to the agent in the guest
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in SPEAK:
                for argument in node.args[:2]:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield f"{path.relative_to(SOURCE)}:{node.lineno}", argument.value
                        break


def test_every_word_in_the_adapter_that_is_a_command_has_a_row() -> None:
    known = commands_of_qemu()
    assert len(known) > 150
    missing = {
        where: text for where, text in texts(SOURCE / "qemu") if text in known - NOT_SENT - set(REPLIES)
    }
    assert missing == {}


def test_every_command_that_is_sent_anywhere_has_a_row() -> None:
    found = dict(sent())
    assert "query-status" in found.values()
    assert {where: command for where, command in found.items() if command not in REPLIES} == {}


def test_every_row_is_a_command_that_a_qemu_has() -> None:
    assert set(REPLIES) - commands_of_qemu() == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_what_real_ones_answered_passes(version: str) -> None:
    found = recorded.read(version)
    answers = {**found["answers"], "query-qmp-schema": found["schema"]}
    wrong = {name: wrong_with(name, None, answer) for name, answer in answers.items()}
    for key, value in found["properties"].items():
        wrong[key] = wrong_with("qom-get", {"property": key.rpartition(" ")[2]}, value)
    for path, listing in found["lists"].items():
        wrong[path] = wrong_with("qom-list", {"path": path}, listing)
    assert {name: why for name, why in wrong.items() if why} == {}


@pytest.mark.parametrize(
    ("command", "answer", "words"),
    [
        ("query-status", 5, "Input should be a valid dictionary, not 5"),
        ("query-name", [1], "Input should be a valid dictionary, not [1]"),
        ("query-name", {"name": 7}, "name: Input should be a valid string, not 7"),
        ("query-name", {"name": "x" * 3_000_000}, "name: String should have at most 4096 characters, not 'xxx"),
        ("query-name", {"name": "\ud800"}, "name: Input should be a valid string, unable to parse"),
        ("query-cpus-fast", 3, "Input should be a valid list, not 3"),
        ("query-memory-size-summary", {"base-memory": 1.5}, "base-memory: Input should be a valid integer"),
        ("query-memory-size-summary", {"base-memory": -1}, "base-memory: Input should be greater than"),
        ("query-memory-size-summary", {"base-memory": 2**70}, "base-memory: Input should be less than"),
        ("query-memory-size-summary", {"base-memory": True}, "base-memory: Input should be a valid integer"),
        ("query-uuid", {"UUID": "\x1b[2J"}, "UUID: String should match pattern"),
        ("query-migrate", {"ram": {}}, "ram.total: Field required"),
        ("query-migrate", {"status": None}, "status: Input should be a valid string"),
        ("query-migrate", {"socket-address": [{"type": "inet", "host": "h"}]}, "socket-address.0.inet.port: Field"),
        ("qom-get", [float("nan")], "a number is not finite"),
        ("query-migrate-parameters", {"tls-creds": "\udfff"}, "a text cannot be written"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_told_in_one_short_line(command: str, answer: Any, words: str) -> None:
    said = wrong_with(command, None, answer)
    assert words in said
    assert len(said) < 300
    assert said.isprintable()


def test_a_value_that_nests_too_deep_is_none() -> None:
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    assert "too deep" in wrong_with("qom-get", {"property": "anything"}, deep)


@pytest.mark.parametrize(
    "event",
    [
        {"event": 5},
        {"event": "STOP", "data": []},
        {"event": "STOP", "timestamp": 7},
        {"event": "STOP", "timestamp": {"seconds": "now"}},
        {"event": "E" * 5000},
    ],
)
def test_an_event_is_checked_too(event: dict[str, Any]) -> None:
    assert wrong_with_event(event)
    assert not wrong_with_event({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}})


def graph(*edges: tuple[int, int], names: int) -> dict[str, Any]:
    return {
        "nodes": [{"id": n, "type": "block-driver", "name": f"n{n}"} for n in range(names)],
        "edges": [{"parent": a, "child": b, "name": f"e{n}"} for n, (a, b) in enumerate(edges)],
    }


@pytest.mark.parametrize(
    ("edges", "names"),
    [
        ([(0, 1), (1, 2), (2, 1)], 3),
        ([(0, 0)], 1),
        ([(n, n + 1) for n in range(5000)], 5001),
        ([(n, n + 1 + way) for n in range(0, 120, 2) for way in (0, 1)] + [(n, n + 1) for n in range(1, 120, 2)], 130),
    ],
    ids=["a circle behind", "itself", "a long chain", "ways beyond number"],
)  # fmt: skip
def test_block_devices_through_which_nobody_could_walk_are_no_answer(
    edges: list[tuple[int, int]], names: int
) -> None:
    named = [{"node-name": f"n{n}"} for n in range(names)]
    with pytest.raises(StrangeAnswer, match=r"stand on"):
        block_nodes(named, graph(*edges, names=names), [])


def test_a_chain_as_long_as_an_honest_one_is_walked() -> None:
    named = [{"node-name": f"n{n}", "drv": "qcow2", "file": "f"} for n in range(200)]
    nodes = block_nodes(named, graph(*[(n, n + 1) for n in range(199)], names=200), [])
    assert nodes.depth("n0") == 199
