"""What a postcopy sends unasked gives way to pages that the guest waits for, and has the path else."""

from __future__ import annotations

from dataclasses import replace

from migrator.core.migration.postcopy_bandwidth import PostcopyBandwidth, begin, forecast_stall, step

MIB = 1 << 20
PATH = 7_000_000.0
HELD_BACK = 0.2 * PATH


def look(
    state: PostcopyBandwidth,
    at: float,
    *,
    requests: int = 0,
    stall: float | None = None,
    left: int = 64 * MIB,
    speed: float = PATH,
) -> PostcopyBandwidth:
    return step(
        state,
        at_seconds=at,
        requests=requests,
        stall_seconds=stall,
        remaining_bytes=left,
        bandwidth_bytes_per_second=speed,
    )


def test_is_held_back_from_the_first_look_on_until_no_page_was_asked_for_in_a_second() -> None:
    state = look(PostcopyBandwidth(), 10.0, requests=5)
    assert state.limit == HELD_BACK
    for tenth in range(1, 10):
        state = look(state, 10.0 + tenth / 10, requests=5, speed=PATH / 2)
        assert state.limit == HELD_BACK
    state = look(state, 11.1, requests=5, speed=PATH / 2)
    assert state.limit == 0


def test_is_held_back_again_when_the_guest_waits_again() -> None:
    state = look(look(PostcopyBandwidth(), 10.0, requests=5), 11.1, requests=5)
    assert state.limit == 0
    asked = look(state, 11.2, requests=6)
    waited = look(state, 11.2, requests=5, stall=0.1)
    assert asked.limit == waited.limit == HELD_BACK


def test_pace_is_no_measure_of_the_path() -> None:
    state = look(PostcopyBandwidth(path_bytes_per_second=PATH), 10.0, requests=1)
    for tenth in range(1, 30):
        state = look(state, 10.0 + tenth / 10, requests=tenth, speed=PATH / 2)
    assert (state.limit, state.path_bytes_per_second) == (HELD_BACK, PATH)


def test_nothing_is_held_back_where_all_arrives_at_once_or_the_path_is_not_known() -> None:
    assert look(PostcopyBandwidth(), 10.0, requests=5, left=MIB).limit == 0
    assert look(PostcopyBandwidth(), 10.0, requests=5, speed=0.0).limit == 0


def test_guest_waits_until_what_it_works_with_has_arrived() -> None:
    forecast = forecast_stall(missing_bytes=70e6, working_set_bytes=14e6, path_bytes_per_second=PATH)
    assert forecast == 2.0
    assert forecast_stall(missing_bytes=7e6, working_set_bytes=14e6, path_bytes_per_second=PATH) == 1.0
    assert forecast_stall(missing_bytes=7e6, working_set_bytes=14e6, path_bytes_per_second=0.0) is None


def test_from_the_moment_the_guest_is_told_to_run_little_is_sent_unasked() -> None:
    assert begin(PostcopyBandwidth(path_bytes_per_second=8e6)).limit == 1_600_000
    assert begin(PostcopyBandwidth()).limit == 0, "nothing is known of the path"


def test_nothing_is_held_back_for_longer_than_all_of_it_would_take() -> None:
    state, at, left = PostcopyBandwidth(path_bytes_per_second=PATH), 0.0, 70_000_000
    held = 0.0
    while at < 30.0:
        state = look(state, at, requests=int(at * 10), left=left)
        held += 0.1 if state.limit else 0.0
        at += 0.1
    assert 9.0 < held < 11.0


def test_path_that_turns_out_to_be_slower_than_was_planned_with_holds_back_more() -> None:
    state = look(PostcopyBandwidth(path_bytes_per_second=100 * PATH), 10.0, requests=1, left=1 << 40)
    assert state.limit == 100 * HELD_BACK
    state = look(replace(state, path_bytes_per_second=PATH), 10.1, requests=2)
    assert state.limit == HELD_BACK


def test_what_the_stream_carries_while_it_is_held_back_is_not_held_back_for_ever_as_its_path() -> None:
    left = 70_000_000
    state, at = look(PostcopyBandwidth(path_bytes_per_second=PATH), 0.0, requests=1, left=left), 0.0
    while at < 11.0:  # on a busy machine not even what the limit allows, and what was asked for
        at += 0.1
        carried = max(0.8 * state.limit, 50_000)
        state = replace(state, path_bytes_per_second=carried if state.limit else state.path_bytes_per_second)
        state = look(state, at, requests=int(at * 100), left=left)
    assert state.limit == 0
