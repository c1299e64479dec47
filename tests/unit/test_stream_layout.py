"""How many channels a stream has, and what is compressed in them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from migrator.core.migration.stream_layout import (
    DELTAS_WRITTEN_RATIO,
    ENCRYPTED_CHANNEL_BYTES_PER_SECOND,
    NARROW_BYTES_PER_SECOND,
    PLAIN_CHANNEL_BYTES_PER_SECOND,
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
        (replace(ENDS, to_send_bytes=200 << 20), POLICY),
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


#: A link that one thread does not fill, and CPUs for more of them.
FAST = replace(ENDS, link_bytes_per_second=2.5 * PLAIN_CHANNEL_BYTES_PER_SECOND, spare_cpus=8.0)


def test_by_itself_memory_has_as_many_channels_as_the_link_takes_threads() -> None:
    choice = choose_layout(POLICY, FAST)
    assert choice.layout == StreamLayout(channels=3)
    assert [action for action, _ in choice.notes] == ["channels"]
    assert choose_layout(POLICY, replace(FAST, spare_cpus=2.9)).layout == StreamLayout(channels=2)
    assert choose_layout(POLICY, replace(FAST, link_bytes_per_second=99e9)).layout.channels == 4


def test_encryption_takes_more_threads_for_the_same_link() -> None:
    link = 1.5 * ENCRYPTED_CHANNEL_BYTES_PER_SECOND
    fast = replace(FAST, link_bytes_per_second=link)
    assert choose_layout(POLICY, fast).layout == PLAIN
    assert choose_layout(POLICY, replace(fast, encrypted=True)).layout == StreamLayout(channels=2)


@pytest.mark.parametrize(
    ("ends", "policy"),
    [
        (replace(FAST, link_bytes_per_second=PLAIN_CHANNEL_BYTES_PER_SECOND), POLICY),
        (replace(FAST, spare_cpus=1.9), POLICY),
        (replace(FAST, tunnelled=True), POLICY),
        (replace(FAST, postcopy=True, versions=("10.1.0", "10.2.0")), POLICY),
        (replace(FAST, capabilities=frozenset()), POLICY),
        (FAST, POLICY.but(streams=1)),
        (FAST, POLICY.but(max_bandwidth_bytes_per_second=100 << 20)),
    ],
)
def test_by_itself_memory_has_one_channel_where_more_would_not_pay(
    ends: StreamAbilities, policy: Policy
) -> None:
    assert choose_layout(policy, ends).layout == PLAIN


#: A guest that was seen to write as much as the stream carries, again and again to the same pages.
HOT = replace(
    ENDS,
    capabilities=frozenset({"multifd", "postcopy-ram", "xbzrle"}),
    link_bytes_per_second=50e6,
    memory_bytes=1 << 30,
    written_bytes_per_second=50e6,
    working_set_bytes=64 << 20,
)
DELTAS = StreamLayout(compression="xbzrle")


def test_by_itself_only_changes_are_sent_of_a_guest_that_whole_pages_would_never_end_with() -> None:
    choice = choose_layout(POLICY, HOT)
    assert (choice.layout, choice.delta_cache_bytes) == (DELTAS, 512 << 20)
    assert [action for action, _ in choice.notes] == ["send-changes"]
    assert not choice.layout.multifd


@pytest.mark.parametrize(
    "ends",
    [
        replace(HOT, written_bytes_per_second=0.99 * DELTAS_WRITTEN_RATIO * 50e6),
        replace(HOT, written_bytes_per_second=None),
        replace(HOT, working_set_bytes=500 << 20),
        replace(HOT, working_set_bytes=0),
        replace(HOT, link_bytes_per_second=2e9, written_bytes_per_second=2e9, spare_cpus=1.5),
        replace(HOT, capabilities=frozenset({"multifd"})),
        replace(HOT, spare_cpus=0.5),
        replace(HOT, postcopy=True),
    ],
)
def test_by_itself_pages_are_sent_whole_where_changes_would_not_pay(ends: StreamAbilities) -> None:
    assert choose_layout(POLICY, ends).layout == PLAIN


def test_changes_alone_and_channels_exclude_each_other() -> None:
    choice = choose_layout(POLICY.but(compress=Compression.XBZRLE, streams=4), HOT)
    assert choice.layout == PLAIN
    assert "accepts wrongly" in choice.notes[0][1]
    asked = choose_layout(POLICY.but(compress=Compression.XBZRLE), replace(HOT, memory_bytes=100 << 20))
    assert (asked.layout, asked.delta_cache_bytes) == (DELTAS, 128 << 20)
