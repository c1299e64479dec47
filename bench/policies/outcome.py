"""Outcome of one migration."""

from __future__ import annotations

from dataclasses import dataclass

from migrator.core.policy import Policy, PostcopyMode

#: QEMU tells the throttle in whole per cent.
_ROUNDING = 0.006


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One algorithm, one guest, one policy, once."""

    strategy: str
    guest: str
    setting: str
    #: Tells apart runs of the same: the guest and the link were in another mood.
    seed: int
    #: ``completed``, ``aborted`` or ``unfinished``, which is when the harness had waited long enough.
    end: str
    seconds: float
    #: From STOP to RESUME; ``None`` when the guest was not moved.
    downtime_seconds: float | None
    #: Time that the guest did not work: stood still, was throttled, waited for its memory.
    lost_seconds: float
    sent_bytes: float
    max_throttle_ratio: float = 0.0
    postcopy: bool = False
    #: Of the whole time, made at the end of the first round; ours alone.
    forecast_seconds: float | None = None
    #: The round after which it was first said that nothing allowed will do; ours alone.
    cannot_round: int | None = None

    @property
    def case(self) -> tuple[str, str, int]:
        """Guest and link that the migration had to deal with."""
        return self.guest, self.setting, self.seed

    def inside(self, policy: Policy) -> bool:
        """The guest was moved, and nothing was done to it that the policy does not allow."""
        return (
            self.end == "completed"
            and self.downtime_seconds is not None
            and self.downtime_seconds <= policy.max_downtime_seconds
            and self.max_throttle_ratio <= policy.max_throttle_ratio + _ROUNDING
            and (not self.postcopy or policy.postcopy is not PostcopyMode.NEVER)
            and (policy.max_duration_seconds is None or self.seconds <= policy.max_duration_seconds)
        )
