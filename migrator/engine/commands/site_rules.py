"""Lists of what commands may name besides guests and hosts: the site's policies, and the hooks of rolls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from migrator.api.site_documents import HookDocument, HooksDocument, PoliciesDocument, PolicyDocument
from migrator.core.hooks import RollPoint
from migrator.core.policy_words import allowed
from migrator.engine.inventory import Inventory
from migrator.engine.rules import Rules
from migrator.ports.hooks import RollHooks


class SiteRules:
    """Answers what the configuration offers.

    :param rules: as they are now.
    :param hooks: ``None``: there are none.
    """

    def __init__(self, *, rules: Callable[[], Rules], inventory: Inventory, hooks: RollHooks | None) -> None:
        self._rules, self._inventory, self._hooks = rules, inventory, hooks

    def policies(self) -> PoliciesDocument:
        """Return all policies: those built in first."""
        rules = self._rules()
        guests = Counter(guest.policy or rules.default_policy for guest in self._inventory.guests())
        return PoliciesDocument(
            items=[self._policy(rules, name, guests[name]) for name in rules.policy_names]
        )

    def _policy(self, rules: Rules, name: str, guests: int) -> PolicyDocument:
        policy = rules.policy(name)
        return PolicyDocument(
            name=name,
            built_in=name not in rules.configured_policies,
            default=name == rules.default_policy,
            allows=allowed(policy),
            max_downtime_seconds=policy.max_downtime_seconds,
            max_bandwidth_bytes_per_second=policy.max_bandwidth_bytes_per_second,
            max_throttle_ratio=policy.max_throttle_ratio,
            postcopy=policy.postcopy,
            max_duration_seconds=policy.max_duration_seconds,
            last_resort=policy.last_resort,
            offline=policy.offline,
            saves=policy.saves,
            cold=policy.cold,
            guests=guests,
        )

    def hooks(self) -> HooksDocument:
        """Return the hooks of rolls, in the order in which they are run."""
        return HooksDocument(
            items=[
                HookDocument(
                    name=hook.name,
                    point=hook.point,
                    where=hook.place,
                    timeout_seconds=hook.timeout_seconds,
                )
                for point in RollPoint
                for hook in (self._hooks.for_roll(point) if self._hooks is not None else ())
            ]
        )
