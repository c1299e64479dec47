"""Migration capabilities and parameters of a fake QEMU: what it takes, what it refuses, in QEMU's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migrator.testing.fake_monitor import CommandRefused
from migrator.testing.settings import Parameters

_RANGES: dict[str, tuple[int, int, str]] = {
    "downtime-limit": (0, 2_000_000, "expects an integer in the range of 0 to (2000 * 1000) ms"),
    "cpu-throttle-initial": (1, 99, "expects an integer in the range of 1 to 99"),
    "cpu-throttle-increment": (1, 99, "expects an integer in the range of 1 to 99"),
    "throttle-trigger-threshold": (1, 100, "expects an integer in the range of 1 to 100"),
    "multifd-channels": (1, 255, "expects a value between 1 and 255"),
    "announce-initial": (0, 100_000, "expects a value between 0 and 100000"),
    "announce-max": (0, 100_000, "expects a value between 0 and 100000"),
    "announce-rounds": (1, 1000, "expects a value between 1 and 1000"),
    "announce-step": (1, 10_000, "expects a value between 1 and 10000"),
}


def check_parameters(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """
    :raise Refused: nothing of `wanted` may be taken over then.
    """
    for name, value in wanted.items():
        known = present.get(name)
        if isinstance(known, bool) and not isinstance(value, bool):
            raise CommandRefused(f"Invalid parameter type for '{name}', expected: boolean")
        if isinstance(known, int) and not isinstance(known, bool) and type(value) is not int:
            raise CommandRefused(f"Parameter '{name}' expects uint64")
        if isinstance(known, str) and not isinstance(value, str):
            raise CommandRefused(f"Invalid parameter type for '{name}', expected: StrOrNull")
    for name, (low, high, words) in _RANGES.items():
        if name in wanted and not low <= wanted[name] <= high:
            raise CommandRefused(f"Parameter '{name.replace('-', '_')}' {words}")
    if "max-cpu-throttle" in wanted:
        low = wanted.get("cpu-throttle-initial", present["cpu-throttle-initial"])
        if not low <= wanted["max-cpu-throttle"] <= 99:
            words = "expects an integer in the range of cpu_throttle_initial to 99"
            raise CommandRefused(f"Parameter 'max_cpu_throttle' {words}")


def check_capabilities(wanted: Mapping[str, bool], *, old: bool) -> None:
    """Check that these capabilities go together.

    :param wanted: all of them, as they would be.
    :param old: QEMU 7.2, which takes combinations that do not work.
    :raise Refused: when they do not.
    """
    on = {name for name, state in wanted.items() if state}
    if "postcopy-preempt" in on and "postcopy-ram" not in on:
        raise CommandRefused("Postcopy preempt requires postcopy-ram")
    if "zero-copy-send" in on and "multifd" not in on:
        raise CommandRefused("Zero copy only available for non-compressed non-TLS multifd migration")
    if "background-snapshot" in on and "postcopy-ram" in on:
        raise CommandRefused("Background-snapshot is not compatible with postcopy-ram")
    if old:
        return
    if {"postcopy-ram", "multifd"} <= on:
        raise CommandRefused("Postcopy is not yet compatible with multifd")
    if {"multifd", "xbzrle"} <= on:
        raise CommandRefused("Multifd is not compatible with xbzrle")
    if "switchover-ack" in on and "return-path" not in on:
        raise CommandRefused("Capability 'switchover-ack' requires capability 'return-path'")
    if "dirty-limit" in on:
        raise CommandRefused("dirty-limit requires KVM with accelerator property 'dirty-ring-size' set")


def simulated(parameters: Mapping[str, Any], capabilities: Mapping[str, bool]) -> Parameters:
    """Return the parameters in the simulator's form."""
    return Parameters(
        max_bandwidth_bytes_per_second=float(parameters["max-bandwidth"] % 2**64),
        max_postcopy_bandwidth_bytes_per_second=float(parameters["max-postcopy-bandwidth"] % 2**64),
        downtime_limit_seconds=parameters["downtime-limit"] / 1e3,
        auto_converge=capabilities["auto-converge"],
        throttle_initial_ratio=parameters["cpu-throttle-initial"] / 100,
        throttle_increment_ratio=parameters["cpu-throttle-increment"] / 100,
        max_throttle_ratio=parameters["max-cpu-throttle"] / 100,
        throttle_trigger_ratio=parameters["throttle-trigger-threshold"] / 100,
        throttle_tailslow=parameters["cpu-throttle-tailslow"],
        pause_before_switchover=capabilities["pause-before-switchover"],
    )
