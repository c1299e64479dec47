"""How many channels a stream has, and what is compressed in them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from migrator.core.migration.stream_layout import (
    NARROW_BYTES_PER_SECOND,
    StreamAbilities,
    StreamLayout,
    choose_layout,
)
from migrator.core.policy import Compression, Policy, builtin

PLAIN, ZSTD = StreamLayout(), StreamLayout(compression="zstd")
#: Both could do all of it, and it would pay.
ENDS = StreamAbilities(
    capabilities=frozenset({"multifd", "postcopy-ram"}),
    versions=("7.2.22", "10.0.2"),
    postcopy=False,
    link_bytes_per_second=60e6 / 8,
    spare_cpus=2.0,
)
POLICY = builtin("gentle")


def test_by_itself_memory_is_compressed_where_the_link_is_narrow_and_cpus_have_no_work() -> None:
    choice = choose_layout(POLICY, ENDS)
    assert choice.layout == ZSTD
    assert [action for action, _ in choice.notes] == ["compress"]


@pytest.mark.parametrize(
    ("ends", "policy"),
    [
        (replace(ENDS, link_bytes_per_second=NARROW_BYTES_PER_SECOND * 1.01), POLICY),
        (replace(ENDS, link_bytes_per_second=None), POLICY),
        (replace(ENDS, spare_cpus=0.9), POLICY),
        (replace(ENDS, spare_cpus=None), POLICY),
        (replace(ENDS, capabilities=frozenset()), POLICY),
        (replace(ENDS, postcopy=True), POLICY),
        (replace(ENDS, postcopy=True, versions=("10.1.0", "10.2.0")), POLICY),
        (ENDS, POLICY.but(compress=Compression.NEVER)),
        (ENDS, POLICY.but(streams=1)),
    ],
)
def test_by_itself_nothing_else_is_chosen_for_less(ends: StreamAbilities, policy: Policy) -> None:
    assert choose_layout(policy, ends).layout == PLAIN
    assert choose_layout(policy, ends).notes == ()


def test_narrow_is_what_the_policy_leaves_of_the_link_too() -> None:
    wide = replace(ENDS, link_bytes_per_second=1e9)
    assert choose_layout(POLICY.but(max_bandwidth_bytes_per_second=5 << 20), wide).layout == ZSTD


def test_what_the_policy_asks_for_is_done_whatever_is_known() -> None:
    little = replace(ENDS, link_bytes_per_second=None, spare_cpus=None)
    assert choose_layout(POLICY.but(streams=4), little).layout == StreamLayout(channels=4)
    zstd = POLICY.but(compress=Compression.ZSTD)
    assert choose_layout(zstd, little).layout == StreamLayout(channels=2, compression="zstd")
    assert choose_layout(zstd, ENDS).layout == ZSTD
    assert choose_layout(zstd, replace(ENDS, link_bytes_per_second=10e9)).layout.channels == 4
    assert choose_layout(zstd.but(streams=3), ENDS).layout.channels == 3


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (replace(ENDS, capabilities=frozenset({"postcopy-ram"})), "one of the QEMUs cannot do that"),
        (replace(ENDS, postcopy=True), "from QEMU 10.1 on"),
        (replace(ENDS, postcopy=True, versions=("10.1.0", "10.0.2")), "from QEMU 10.1 on"),
    ],
)
def test_what_qemu_refuses_or_wrongly_accepts_is_left_out_with_a_note(
    ends: StreamAbilities, words: str
) -> None:
    choice = choose_layout(POLICY.but(streams=4, compress=Compression.ZSTD), ends)
    assert choice.layout == PLAIN
    assert [action for action, _ in choice.notes] == ["plain-stream"]
    assert words in choice.notes[0][1]


def test_channels_and_postcopy_go_together_where_both_qemus_say_so() -> None:
    ends = replace(ENDS, postcopy=True, versions=("10.1.0", "10.2.0"))
    assert choose_layout(POLICY.but(streams=4), ends).layout == StreamLayout(channels=4)
