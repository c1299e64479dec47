"""The catalogue of findings: it holds every code that the code uses and no other, and says what may be accepted."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

import migrator
from migrator.core.findings import CATALOGUE, accept, acceptable, errors_first, finding
from migrator.core.model import Finding, Severity
from migrator.core.preflight.comparisons import COMPARED
from migrator.errors import UsageError

PACKAGE = Path(migrator.__file__).parent
#: Who makes a finding of a code, and of which severity; ``None``: as the catalogue says.
MAKERS = {"finding": None, "warn": Severity.WARNING, "_warn": Severity.WARNING, "_error": Severity.ERROR}
#: Every file that makes one has this in it.
_MAKES = re.compile(rf"\b({'|'.join(MAKERS)}|Finding)\(|\bobstacle_code\b")


@cache
def used_codes() -> dict[str, set[Severity | None]]:
    """Every code that stands in the code of migrator, with the severities that it is given."""
    found: dict[str, set[Severity | None]] = defaultdict(set)
    # What the doctor says are no findings of preflight.
    trees = [
        (ast.parse(text := path.read_text(encoding="utf-8")), text)
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "findings"
        and not path.name.startswith("doctor")
        and "testing" not in path.parts
    ]
    #: Constants of any module, as others import them.
    shared = {
        name: codes for tree, _ in trees for name, codes in assigned(tree.body, {}).items() if name.isupper()
    }
    for tree, text in trees:
        if not _MAKES.search(text):
            continue
        nodes = list(ast.walk(tree))
        named = shared | assigned(nodes, shared)
        for node in nodes:
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in MAKERS and len(node.args) > 1:
                    for code in constants(node.args[0], named):
                        found[code].add(MAKERS[name])
                for keyword in node.keywords:
                    if keyword.arg == "obstacle_code" or (keyword.arg == "code" and name == "Finding"):
                        for code in constants(keyword.value, named):
                            found[code].add(Severity.ERROR if keyword.arg == "obstacle_code" else None)
    return {code: severities for code, severities in found.items() if code}


def assigned(nodes: Iterable[ast.AST], named: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The strings that each name is given in these statements."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found[target.id] |= constants(node.value, named)
    return found


def constants(node: ast.expr, named: Mapping[str, set[str]]) -> set[str]:
    """The strings that an expression can be; empty where it is computed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.Name):
        return named.get(node.id, set())
    if isinstance(node, ast.IfExp):
        return constants(node.body, named) | constants(node.orelse, named)
    if isinstance(node, ast.BoolOp):
        return set().union(*(constants(value, named) for value in node.values))
    return set()


def test_every_code_that_is_used_is_in_the_catalogue_with_its_severity() -> None:
    used = used_codes()
    assert len(used) > 60
    assert used.keys() - CATALOGUE.keys() == set()
    wrong = {
        code: severities
        for code, severities in used.items()
        if severities - {None} - {CATALOGUE[code].severity}
    }
    assert not wrong


def test_of_every_code_it_is_said_what_is_compared_with_what() -> None:
    assert set(COMPARED) == set(CATALOGUE)
    assert all(text == text.strip(" .") and "|" not in text for text in COMPARED.values())


def test_every_code_of_the_catalogue_is_used() -> None:
    assert CATALOGUE.keys() - used_codes().keys() == set()


@pytest.mark.parametrize("code", CATALOGUE)
def test_entry_says_what_and_what_to_do_in_words(code: str) -> None:
    entry = CATALOGUE[code]
    assert entry.code == code
    assert code.replace("-", "").isalnum()
    assert code == code.lower()
    for text in (entry.meaning, entry.remedy):
        assert len(text) > 15
        assert not text.endswith(".")
        assert "|" not in text  # it would break the table in docs/preflight.md
    assert not entry.overridable or entry.severity is Severity.ERROR


@pytest.mark.parametrize(
    "code",
    ["disk-not-shared", "snapshot", "disk-locked", "source-not-running", "blocked", "uuid", "disk-format"],
)
def test_what_would_damage_the_guest_cannot_be_accepted(code: str) -> None:
    assert not CATALOGUE[code].overridable
    with pytest.raises(UsageError, match=rf"{code} cannot be accepted.*cache-unsafe"):
        accept([finding(code, "no")], [code])


def test_accepted_error_becomes_a_warning_that_says_so() -> None:
    error = finding("cache-unsafe", "disk0 goes through the page cache")
    (accepted,) = accept([error], ["cache-unsafe"])
    assert accepted == Finding(
        code="cache-unsafe",
        severity=Severity.WARNING,
        message="accepted: disk0 goes through the page cache",
        remedy=error.remedy,
    )
    assert accept([accepted], ["cache-unsafe"]) == (accepted,)  # twice is once


def test_accepting_leaves_everything_else_as_it_is_errors_first() -> None:
    warning, error = finding("user-network", "lost"), finding("file-missing", "no kernel")
    unsafe = finding("cache-unsafe", "disk0")
    got = accept([warning, unsafe, error, error], ["cache-unsafe", "hugepages"])
    assert [each.code for each in got] == ["file-missing", "user-network", "cache-unsafe"]
    assert got[0] == error
    assert got[1] == warning
    assert accept([unsafe], []) == (unsafe,)


@pytest.mark.parametrize(
    ("code", "words"),
    [("no-such", "there is no finding 'no-such'"), ("user-network", "user-network is a warning"), ("", "''")],
)
def test_code_that_cannot_be_accepted_is_refused_even_where_it_was_not_found(code: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        accept([], [code])
    assert acceptable() in str(refused.value)
    assert "\n" not in str(refused.value)


def test_findings_are_told_once() -> None:
    one, other = finding("file-missing", "a"), finding("file-missing", "b")
    assert errors_first([one, other, one]) == (one, other)


def test_finding_that_the_catalogue_does_not_know_cannot_be_made() -> None:
    with pytest.raises(KeyError):
        finding("made-up", "nothing")


#: Every error that a person may accept, and how the guest may arrive all the same. One that has no such way is refused
#: whatever anybody says, or an accepted migration would only fail later.
MAY_GO_WELL = {
    "ceiling-infeasible": "the guest stands still for somewhat longer, and arrives",
    **dict.fromkeys(
        ("bridge-down", "bridge-uplink", "tap-bridge", "tap-down", "tap-vlan"),
        "somebody sees to the network while the guest moves, or it does without",
    ),
    "guest-not-shut-down": "a guest that hangs, or has nothing to lose, may be ended by force",
    "load-disks": "an image may be copied, or its time changed, with nothing in it being another",
    "save-room": "what the guest has in memory may be mostly zero, and takes no room then",
    "tls-certificate": "the network between the hosts may be nobody else's, and the guest arrives in clear",
    "tcg-loses-writes": "most guests lived through it",
    "cache-unsafe": "the file system may be coherent, or the guest may not read what it wrote",
    "cpu-features": "the guest may not use them",
    "cpu-flags": "the guest may not use them",
    "disk-access": "QEMU may run as another user than was tried",
    "file-access": "QEMU may run as another user than was tried",
    "hugepages": "the kernel may make more when asked (nr_overcommit_hugepages)",
    "libvirt-snapshots": "the libvirt of the source may be a version that lets such a guest go",
    "libvirt-unsafe-cache": "both hosts may see the same file, and libvirt only not know the file system",
    "machine-unversioned": "two versions may have the same machine of that name",
    "managed-elsewhere": "its manager may have been told to leave it alone",
    "memory-free": "the guest may not touch all of it, or the target may swap",
    "nested-abilities": "no guest within may use them",
    "port-in-use": "the guest listens at another port then",
    "process-user": "another user may be right for the guest's files",
    "tap-missing": "QEMU makes the tap, and the guest does without the network",
    "tpm": "swtpm may have been started there",
    "user-namespace": "the guest may need nothing that only its namespace gave",
    "vhost-user": "the process may have been started there",
}


def test_what_can_be_accepted_can_go_well() -> None:
    accepted = {code for code, entry in CATALOGUE.items() if entry.overridable}
    assert accepted - MAY_GO_WELL.keys() == set()
    assert MAY_GO_WELL.keys() - accepted == set()


@pytest.mark.parametrize(
    "code", ["passed-descriptor", "command-line-unknown", "vhost-user-socket", "backend-lost", "memory-file"]
)
def test_what_cannot_go_well_cannot_be_accepted(code: str) -> None:
    with pytest.raises(UsageError, match="cannot be accepted"):
        accept([], [code])
