"""What a person types and reads: suffixes in, base units inside, figures out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import units
from migrator.errors import UsageError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("300ms", 0.3), ("2s", 2.0), ("10m", 600.0), ("10min", 600.0), ("1.5h", 5400.0), ("2d", 172_800.0)),
        *((" 5 S ", 5.0), ("7", 7.0), (".5s", 0.5), ("250us", 0.00025), ("0", 0.0)),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert units.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 month", "1,5s", "1e3", "nan", "inf", "1s2", "10 m s"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration: write it like 300ms, 2s or 10m"):
        units.seconds(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(
            ("512MiB", 512 * MIB),
            ("512M", 512 * MIB),
            ("512MB", 512_000_000),
            ("4GiB", 4 * GIB),
            ("1tib", 1 << 40),
        ),
        *(("4096", 4096), ("1.5K", 1536), ("3 b", 3)),
    ],
)
def test_size(text: str, size: int) -> None:
    assert units.size(text) == size


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        *(("1GiB/s", GIB), ("100MiB/s", 100 * MIB), ("100M", 100 * MIB), ("10Gbit/s", 1_250_000_000)),
        *(("8bit", 1), ("80kbit/s", 10_000), ("12500000", 12_500_000)),
    ],
)
def test_bandwidth_in_bytes_or_as_links_are_sold(text: str, rate: int) -> None:
    assert units.rate(text) == rate


@pytest.mark.parametrize("text", ["fast", "1Gbps", "10 Gbit/m", "", "/s", "1GiB/s/s"])
def test_what_is_no_bandwidth_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="is not a bandwidth: write it like 1GiB/s or 10Gbit/s"):
        units.rate(text)


@pytest.mark.parametrize(
    ("text", "share"), [("80%", 0.8), ("0.8", 0.8), ("0", 0.0), ("100 %", 1.0), ("1", 1.0)]
)
def test_share(text: str, share: float) -> None:
    assert units.ratio(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["80", "101%", "-1%", "%", "half", "1.01", "0.5%%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a share between 0 and 1: write it like 80% or 0\.8"):
        units.ratio(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *((0.00025, "250 us"), (0.0031, "3.1 ms"), (0.014, "14 ms"), (2.51, "2.5 s"), (119.0, "119.0 s")),
        *((190.0, "3 min 10 s"), (7199.0, "119 min 59 s"), (7260.0, "2 h 1 min")),
    ],
)
def test_duration_as_people_read_it(seconds: float, shown: str) -> None:
    assert units.show_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (1000, "1000 B"), (96 * MIB, "96.0 MiB"), (1536 * KIB, "1.5 MiB"), (3 << 50, "3072.0 TiB")],
)
def test_size_as_people_read_it(size: int, shown: str) -> None:
    assert units.show_bytes(size) == shown
    assert units.show_rate(size) == f"{shown}/s"


def test_share_as_people_read_it() -> None:
    assert units.show_ratio(0.8) == "80%"


@given(st.integers(min_value=0, max_value=1 << 60))
def test_size_in_bytes_is_read_as_it_is(size: int) -> None:
    assert units.size(str(size)) == pytest.approx(size, rel=1e-15)


@given(st.text(max_size=12))
def test_whatever_is_typed_is_read_or_refused(text: str) -> None:
    for read in (units.seconds, units.size, units.rate, units.ratio):
        with contextlib.suppress(UsageError):
            assert read(text) >= 0
