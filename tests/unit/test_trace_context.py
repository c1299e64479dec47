"""What is taken for a trace context, and what the standard says to ignore."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.api import trace_context
from migrator.api.trace_context import TraceContext, read

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (GOOD, 1),
        (f" \t{GOOD} ", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),
        # Flags that this version does not know are not passed on.
        (f"00-{TRACE}-{SPAN}-ff", 3),
        # A later version may say more than is understood.
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", 1),
    ],
)
def test_good_ones(text: str, flags: int) -> None:
    found = read([text])
    assert found == TraceContext(trace_id=TRACE, span_id=SPAN, flags=flags)
    assert found.sampled == bool(flags & 1)
    assert found.parent == f"00-{TRACE}-{SPAN}-{flags:02x}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        GOOD.upper(),
        GOOD.replace("-", "_"),
        GOOD + "-",
        GOOD + "-more",
        GOOD + "\n",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01.more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0x",
        f"00-{TRACE[:-1]}\u0663-{SPAN}-01",
    ],
)
def test_bad_ones_are_none_and_take_their_state_with_them(text: str) -> None:
    assert read([text], ["a=1"]) is None


def test_several_parents_are_none() -> None:
    assert read([]) is None
    assert read([GOOD, GOOD]) is None


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        ([], ""),
        ([""], ""),
        (["rojo=00f067aa0ba902b7"], "rojo=00f067aa0ba902b7"),
        (["a=1 , b=2", "\tc=3,,"], "a=1,b=2,c=3"),
        (["fw529a3039@dt=FfD/+=8x,a=  x y"], ""),  # = in a value
        (["1a-_*/@t-_*/=x"], "1a-_*/@t-_*/=x"),
        (["a=1,a=2"], ""),
        (["A=1"], ""),
        (["a"], ""),
        (["a=\u00e9"], ""),
        (
            [",".join(f"k{number}=v" for number in range(32))],
            ",".join(f"k{number}=v" for number in range(32)),
        ),
        ([",".join(f"k{number}=v" for number in range(33))], ""),
        ([f"a={'x' * 256}"], f"a={'x' * 256}"),
        ([f"a={'x' * 257}"], ""),
        # More than everyone has to pass on: members are left out whole, from the end.
        ([f"a={'x' * 250},b={'y' * 250},c=3"], f"a={'x' * 250},b={'y' * 250},c=3"),
        ([f"a={'x' * 250},b={'y' * 250},c=3333333333"], f"a={'x' * 250},b={'y' * 250}"),
    ],
)
def test_states(states: list[str], kept: str) -> None:
    found = read([GOOD], states)
    assert found is not None
    assert found.state == kept
    assert trace_context.of(found.parent, found.state) == found


def test_a_document_without_one_has_none() -> None:
    assert trace_context.of(None, None) is None
    assert trace_context.of(None, "a=1") is None


@given(st.text(max_size=80), st.text(max_size=600))
def test_whatever_comes_is_read_without_a_fault(parent: str, state: str) -> None:
    assert read([parent], [state]) is None or parent.strip(" \t")[2] == "-"
    found = read([GOOD], [state])
    assert found is not None
    assert len(found.state) <= 512
    assert found.state.isascii()
