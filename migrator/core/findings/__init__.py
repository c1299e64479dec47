"""The catalogue of findings: every code there is, what it means, and whether a person may accept it.

``docs/preflight.md`` is made from it. A code, once published, keeps its meaning: scripts and ``--accept`` refer to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from migrator.core.findings.texts import COMMAND, DESTINATION, GUEST, PAIR, SOURCE, WAY, Texts
from migrator.core.findings.texts_hosts import HOSTS
from migrator.core.findings.texts_libvirt import MANAGED, MANAGED_WAY
from migrator.core.findings.texts_process import PROCESS
from migrator.core.findings.texts_state import STATE
from migrator.core.model import Finding, Severity
from migrator.errors import Refused, UsageError

_ACCEPTED = "accepted: "


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One code of the catalogue."""

    code: str
    severity: Severity
    #: Meaning: the problem, and what would come of it.
    meaning: str
    #: Remedy in general words; a finding may have better ones.
    remedy: str
    #: A person who knows better can have the migration begin all the same. Only errors are.
    overridable: bool
    #: Heading in the document.
    about: str


def _entries(about: str, texts: Texts) -> Iterable[tuple[str, CatalogueEntry]]:
    for code, (rank, meaning, remedy) in texts.items():
        yield (
            code,
            CatalogueEntry(
                code=code,
                severity=Severity.WARNING if rank == "warning" else Severity.ERROR,
                meaning=meaning,
                remedy=remedy,
                overridable=rank == "overridable",
                about=about,
            ),
        )


#: Every code there is, in the order of the document.
CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType(
    {
        **dict(_entries("The guest", GUEST)),
        **dict(_entries("The source", SOURCE)),
        **dict(_entries("Under way or set in the source's QEMU", STATE)),
        **dict(_entries("The hosts", HOSTS)),
        **dict(_entries("Guests of libvirt", MANAGED)),
        **dict(_entries("The process, made again", PROCESS)),
        **dict(_entries("The command line, used again", COMMAND)),
        **dict(_entries("The waiting destination", DESTINATION)),
        **dict(_entries("Both QEMUs beside each other", PAIR)),
        **dict(_entries("On the way", {**WAY, **MANAGED_WAY})),
    }
)


class PreflightRefused(Refused):
    """Preflight has findings that keep a migration from beginning.

    :ivar findings: all of them, warnings too.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        errors = [each for each in findings if each.severity is Severity.ERROR]
        super().__init__("; ".join(f"{each.message} ({each.remedy})" for each in errors))
        self.findings = tuple(findings)


def finding(code: str, message: str, remedy: str = "") -> Finding:
    """Return a finding of the catalogue, with its severity.

    :param remedy: where there is a better one than the catalogue's.
    :raise KeyError: when the catalogue has no such code.
    """
    entry = CATALOGUE[code]
    return Finding(code=code, severity=entry.severity, message=message, remedy=remedy or entry.remedy)


#: Errors that no other target would change: they are about the guest, or the source.
_EVERYWHERE = (
    frozenset(GUEST)
    | frozenset(SOURCE)
    | {"snapshot", "vfio", "preconfig", "block-job", "block-export", "replay"}
    | {"libvirt-host-device", "libvirt-policy", "libvirt-snapshots"}
) - {
    "capability-missing",
    "command-line-unknown",
}


#: What speaks against starting the destination by the source's command line, and against nothing else: whoever starts
#: it otherwise chooses the QEMU and hands it what it needs.
OF_OUR_START = frozenset({"command-line-unknown", "passed-descriptor", "qemu-missing", "tap-in-use"})


def applies_to_every_target(code: str) -> bool:
    """Tell whether an error of that code speaks against every target, so that another need not be tried."""
    return code in _EVERYWHERE


def errors_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings, each once, errors before warnings, else in their order."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda each: each.severity is not Severity.ERROR))


def accept(findings: Iterable[Finding], codes: Iterable[str]) -> tuple[Finding, ...]:
    """Return the findings with the errors of these codes turned into warnings that begin with ``accepted:``.

    A code of which nothing was found changes nothing.

    :raise UsageError: when a code is unknown or stands for something that nobody can accept; it names those that
        can be.
    """
    wanted = frozenset(codes)
    for code in sorted(wanted):
        if code not in CATALOGUE:
            raise UsageError(f"there is no finding {code!r}; those that can be accepted are {acceptable()}")
        if not CATALOGUE[code].overridable:
            reason = (
                "is a warning and hinders nothing"
                if CATALOGUE[code].severity is Severity.WARNING
                else "cannot be accepted: " + CATALOGUE[code].meaning
            )
            raise UsageError(f"finding {code} {reason}; those that can be accepted are {acceptable()}")
    return errors_first(
        replace(each, severity=Severity.WARNING, message=_ACCEPTED + each.message)
        if each.code in wanted and each.severity is Severity.ERROR
        else each
        for each in findings
    )


def acceptable() -> str:
    """Return the codes that can be accepted, for a message."""
    return ", ".join(sorted(code for code, entry in CATALOGUE.items() if entry.overridable))
