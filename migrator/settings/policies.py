"""PolicyCatalogue from the configuration: each is another one, with some fields instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from migrator.core.policy import Policy, PostcopyMode, StreamRoute, TlsUse, builtin
from migrator.errors import UsageError
from migrator.settings import words
from migrator.settings.models import PolicySettings

BUILTIN = ("default", "gentle", "must-finish", "postcopy-first", "save", "cold", "offline")
#: As a person writes it, and as :class:`~migrator.core.policy.Policy` has it.
_FIELDS = {
    "max_downtime": "max_downtime_seconds",
    "max_bandwidth": "max_bandwidth_bytes_per_second",
    "max_throttle": "max_throttle_ratio",
    "postcopy": "postcopy",
    "max_duration": "max_duration_seconds",
    "last_resort": "last_resort",
    "block_jobs": "block_jobs",
    "prefer": "prefer",
    "start": "start",
    "max_postcopy_stall": "max_postcopy_stall_seconds",
    "max_shutdown": "max_shutdown_seconds",
    "disks": "disks",
    "source_images": "source_images",
    "backing": "backing",
    "tls": "tls",
    "stream": "stream",
    "streams": "streams",
    "compress": "compress",
}


def known(configured: Mapping[str, object]) -> list[str]:
    """The names of all policies."""
    return [*BUILTIN, *(name for name in configured if name not in BUILTIN)]


@dataclass(frozen=True)
class PolicyCatalogue:
    """PolicyCatalogue by name: those configured, and those built in."""

    configured: Mapping[str, Policy]
    #: For those that say nothing of it.
    tls: TlsUse = TlsUse.PREFER

    def __call__(self, name: str) -> Policy:
        """Return the policy of that name.

        :raise UsageError: there is none; the message lists those there are.
        """
        policy = self._named(name)
        if policy.tls is not None or self.tls is TlsUse.PREFER:  # which is what it comes to anyway
            return policy
        return replace(policy, tls=self._site_tls(policy))

    def _site_tls(self, policy: Policy) -> TlsUse:
        """Return what the site says; a stream through SSH is encrypted as it is."""
        return TlsUse.OFF if policy.stream is StreamRoute.SSH else self.tls

    def _named(self, name: str) -> Policy:
        if name in self.configured:
            return self.configured[name]
        try:
            return builtin(name)
        except UsageError:
            raise UsageError(
                f"there is no policy {name!r}; there are {', '.join(known(self.configured))}"
            ) from None


def build(name: str, given: Mapping[str, PolicySettings], *, chain: tuple[str, ...] = ()) -> Policy:
    """Return the policy of that name, with all that it extends.

    Without ``extends`` one that is named like one built in extends that, and any other ``default``.

    :raise UsageError: one that it extends does not exist or extends it in turn, or the result contradicts itself.
    """
    settings = given[name]
    parent = settings.extends or (name if name in BUILTIN else "default")
    if parent == name and name not in BUILTIN:
        raise UsageError("extends itself; leave extends out, or name another policy")
    if parent != name and parent in chain:
        raise UsageError(f"extends itself: {' → '.join((*chain, name, parent))}")
    if parent != name and parent in given:
        base = build(parent, given, chain=(*chain, name))
    elif parent in BUILTIN:
        base = builtin(parent)
    else:
        raise UsageError(f"extends: {words.unknown(parent, known(given), 'policy')}")
    changes = {_FIELDS[key]: getattr(settings, key) for key in settings.model_fields_set - {"extends"}}
    if settings.postcopy is PostcopyMode.IMMEDIATE:
        # As Policy.but does: it waits for no round that a throttle could shorten.
        changes.setdefault("max_throttle_ratio", 0.0)
    return replace(base, name=name, **changes)
