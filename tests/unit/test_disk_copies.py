"""Which disks are copied, and how far their mirrors are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from migrator.core.migration.disk_copies import (
    DiskCopy,
    MirrorPhase,
    as_fields,
    disks_to_copy,
    findings,
    from_fields,
    judge_mirrors,
    mirror_name,
    mirror_prefix,
)
from migrator.core.policy import CopiedDisks, builtin
from migrator.core.preflight.non_migrated_state import BlockJob
from tests.host_case import DISK, SOURCE

POLICY = builtin("default")
COPIES = (DiskCopy(device="one", size_bytes=10), DiskCopy(device="two", size_bytes=20))


def job(number: int, status: str, error: str = "") -> BlockJob:
    return BlockJob(
        id=mirror_name("m", number), kind="mirror", status=status, error=error, done_bytes=1, total_bytes=3
    )


@pytest.mark.parametrize(
    ("here", "there", "disks", "copied"),
    [
        ("1:1", "1:1", CopiedDisks.AUTO, False),
        ("1:1", "1:2", CopiedDisks.AUTO, True),
        ("1:1", "1:2", CopiedDisks.NONE, False),
        ("1:1", "1:1", CopiedDisks.ALL, False),  # it would be written over with itself
        ("", "1:2", CopiedDisks.AUTO, False),
        ("", "1:2", CopiedDisks.ALL, True),
    ],
)
def test_disk_is_copied_where_it_is_known_not_to_be_shared(
    here: str, there: str, disks: CopiedDisks, copied: bool
) -> None:
    source = replace(SOURCE, disks=(replace(DISK, identity=here),))
    destination = replace(SOURCE, disks=(replace(DISK, identity=there),))
    found = disks_to_copy(source, destination, replace(POLICY, disks=disks))
    assert [each.device for each in found] == [DISK.device] * copied
    assert from_fields(as_fields(found)) == found


def test_read_only_disk_stays_and_a_new_image_is_filled() -> None:
    source = replace(SOURCE, disks=(replace(DISK, identity="1:1", read_only=True),))
    other = replace(SOURCE, disks=(replace(DISK, identity="1:2"),))
    assert disks_to_copy(source, other, POLICY) == ()
    (found,) = disks_to_copy(SOURCE, SOURCE, POLICY, new=[DISK.device])
    assert found.new


@pytest.mark.parametrize(
    ("states", "phase"),
    [
        (("running", "ready"), MirrorPhase.COPYING),
        (("ready", "ready"), MirrorPhase.READY),
        (("concluded", "ready"), MirrorPhase.ENDING),
        (("concluded", "pending"), MirrorPhase.ENDING),
        (("concluded", "concluded"), MirrorPhase.ARRIVED),
        (("aborting", "ready"), MirrorPhase.BROKEN),
        (("ready",), MirrorPhase.BROKEN),
    ],
)
def test_mirrors_are_as_far_as_the_last_of_them(states: tuple[str, ...], phase: MirrorPhase) -> None:
    jobs = [job(number, status) for number, status in enumerate(states)]
    assert judge_mirrors(COPIES, "m", jobs).phase is phase


def test_one_that_ended_with_an_error_or_is_anothers_is_no_proof() -> None:
    failed = judge_mirrors(COPIES, "m", [job(0, "concluded", "No space left"), job(1, "concluded")])
    assert (failed.phase, "No space left" in failed.problem) == (MirrorPhase.BROKEN, True)
    done = [job(0, "concluded"), job(1, "concluded")]
    assert judge_mirrors(COPIES, "another", done).phase is MirrorPhase.BROKEN


def test_names_fit_into_what_a_node_may_be_called() -> None:
    name = mirror_name("x" * 64, 99)
    assert name.startswith(mirror_prefix("x" * 64))
    assert len(name) <= 31


def test_two_disks_of_one_image_and_one_that_is_on_neither_host_are_not_copied() -> None:
    every = replace(POLICY, disks=CopiedDisks.ALL)
    for disks, why in [
        ((replace(DISK, format="raw"), replace(DISK, device="other", format="raw")), "has the same image"),
        ((replace(DISK, format="raw", file="rbd:pool/image"),), "written over with itself"),
    ]:
        facts = replace(SOURCE, disks=disks)
        found = list(findings(facts, facts, disks_to_copy(facts, facts, every)))
        assert {each.code for each in found} == {"disk-not-copied"}
        assert all(why in each.message for each in found)
