"""The configuration as the engine uses it: policies, where guests go, how links are shared, how much at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from migrator.core.drain.limits import GroupRules, SiteLimits
from migrator.core.inventory import Guest, Host
from migrator.core.placement import Options
from migrator.core.policy import Policy
from migrator.core.schedule.transfers import LinkRules
from migrator.settings import GuestRules, Settings
from migrator.settings.models import LimitsSettings
from migrator.settings.policies import BUILTIN, PolicyCatalogue, known


def _links(limits: LimitsSettings) -> LinkRules:
    return LinkRules(
        reserve_ratio=limits.link_reserve,
        assumed_link_bytes_per_second=limits.assumed_link_speed,
        quiet_at_a_time=limits.sharing_at_a_time,
        prepared_per_source=limits.prepared_per_source,
        prepared_per_target=limits.prepared_per_target,
    )


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The sections of the configuration that the engine goes by, in the words of core."""

    #: The policy of that name; raises UsageError for one that there is not.
    policy: Callable[[str], Policy]
    #: The name of the policy of guests that have none of their own.
    default_policy: str = "default"
    #: Names of all policies that there are, and of those that the configuration says something of.
    policy_names: Sequence[str] = BUILTIN
    configured_policies: frozenset[str] = frozenset()
    placement: Options = field(default_factory=Options)
    links: LinkRules = field(default_factory=LinkRules)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    #: How guests of a group move, by its name.
    groups: Mapping[str, GroupRules] = field(default_factory=dict)

    def policy_of(self, guest: Guest, name: str | None = None) -> Policy:
        """Return the policy asked for, else the guest's, else the site's.

        :raise UsageError: there is none of that name.
        """
        return self.policy(name or guest.policy or self.default_policy)

    @cached_property
    def site_limits(self) -> SiteLimits:
        """Return the limits that a plan keeps to."""
        return SiteLimits(
            links=self.links,
            migrations_at_a_time=self.limits.migrations_at_a_time,
            attempts=self.limits.attempts,
            first_pause_seconds=self.limits.first_pause,
            groups=self.groups,
        )

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """Return the rules that the configuration makes; equal where it says the same."""
        return cls(
            policy=PolicyCatalogue(settings.policies, tls=settings.site.tls),
            default_policy=settings.site.default_policy,
            policy_names=tuple(known(settings.policies)),
            configured_policies=frozenset(settings.policies),
            placement=Options(strategy=settings.placement.strategy, max_tries=settings.placement.max_tries),
            links=_links(settings.limits),
            limits=settings.limits,
            groups={name: group.rules() for name, group in settings.groups.items()},
        )


@dataclass(frozen=True, kw_only=True)
class HostRules:
    """The configuration of hosts and of the guests on them."""

    hosts: tuple[Host, ...]
    #: A guest with what is configured of it.
    guests: Callable[[Guest], Guest]
    #: Seconds between two looks at a host.
    interval: float

    @classmethod
    def of(cls, settings: Settings) -> HostRules:
        """Return what the configuration says; equal where it says the same."""
        return cls(
            hosts=tuple(settings.inventory()),
            guests=GuestRules(settings.guests),
            interval=settings.limits.refresh_interval,
        )
