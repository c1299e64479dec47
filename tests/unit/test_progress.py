"""A progress bar that never runs backwards, whatever QEMU's figures do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from migrator.core.migration.progress import Progress
from migrator.core.model import Sample

sizes = st.integers(min_value=0, max_value=1 << 40)
samples = st.builds(Sample, round=st.integers(0, 50), total_bytes=sizes, remaining_bytes=sizes)


@given(st.lists(samples, max_size=40))
def test_never_falls_and_stays_short_of_arrival(seen: list[Sample]) -> None:
    progress, before = Progress(), 0.0
    for sample in seen:
        ratio = progress.update(sample)
        assert before <= ratio <= 0.99
        assert ratio == progress.ratio
        before = ratio
    progress.finish()
    assert progress.ratio == 1


def test_grows_over_the_first_round_and_the_rest_shares_what_is_left() -> None:
    progress = Progress()
    ratios = [
        progress.update(Sample(round=number, total_bytes=100, remaining_bytes=left))
        for number, left in [(1, 100), (1, 50), (1, 0), (2, 60), (2, 10), (3, 0)]
    ]
    assert ratios == sorted(ratios)
    assert ratios[0] == 0
    assert ratios[1] == 0.45
    assert ratios[2] == 0.9
    assert 0.9 < ratios[3] < ratios[4] < ratios[5] == 0.99


def test_without_figures_stays_where_it_is() -> None:
    progress = Progress()
    progress.update(Sample(round=1, total_bytes=100, remaining_bytes=50))
    assert progress.update(Sample()) == 0.45
