"""What will come of the migrations that wait or run: when each will end, and who is not expected to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from migrator.core.forecast import Verdict
from migrator.core.foresight import Foreseen, foresee
from migrator.core.inventory import Guest, Host
from migrator.core.model import RunState
from migrator.core.policy import Policy
from migrator.core.timetable import Prediction, predict
from migrator.core.transfers import Move, Network, Rules, Transfer
from migrator.units import show_rate

#: How long a dirty-rate probe watches.
PROBE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Going:
    """Whose a transfer is."""

    guest: Guest
    policy: Policy
    #: Of its running migration; ``UNKNOWN`` before there is one that can tell.
    verdict: Verdict = Verdict.UNKNOWN
    #: Why that migration is at risk, where it said so.
    said: str = ""
    #: Nothing can keep it from ending any more: it is past its switch.
    sure: bool = False


def foretell(
    transfers: Sequence[Transfer], going: Mapping[str, Going], hosts: Mapping[str, Host], rules: Rules
) -> tuple[Prediction, dict[str, str]]:
    """When each ends; and for everyone that is not expected to, by the guest's key, why. Pure."""
    network = Network(hosts, rules)
    doubts = {}
    for transfer in transfers:
        one = going.get(transfer.guest)
        if one is None or one.sure:  # none: it has ended since
            continue
        if one.verdict in (Verdict.CONVERGES, Verdict.CONVERGES_IF):
            continue
        speed = Move(transfer, network, rules).speed
        if one.said:
            doubts[transfer.guest] = f"not expected to end: {one.said}"
        elif foreseen(one.guest, one.policy, transfer, speed).verdict is Verdict.CANNOT:
            doubts[transfer.guest] = f"not expected to end: {no_end(one.guest, one.policy, speed)}"
    return predict(transfers, hosts, rules), doubts


def foreseen(guest: Guest, policy: Policy, transfer: Transfer, speed: float) -> Foreseen:
    """Of a migration that has not begun.

    :param speed: what the stream will carry, bytes per second.
    """
    if guest.run is not RunState.RUNNING:
        return Foreseen(verdict=Verdict.CONVERGES)  # nobody dirties anything, and nobody stands still
    return foresee(
        policy,
        left_bytes=transfer.bytes_left,
        bytes_per_second=speed,
        dirty_rate_bytes_per_second=guest.dirty_rate_bytes_per_second,
        probe_seconds=PROBE_SECONDS,
    )


def no_end(guest: Guest, policy: Policy, speed: float) -> str:
    """Why a guest cannot be moved inside its policy."""
    return (
        f"it dirties {show_rate(guest.dirty_rate_bytes_per_second or 0.0)}, its link carries {show_rate(speed)}, "
        f"and policy {policy.name} allows nothing that would let it end"
    )
