"""``docs/metrics.md``, from the catalogue."""

from __future__ import annotations

from collections.abc import Sequence

from migrator.metrics.catalogue import COUNTED, EVACUATIONS, INVENTORY, MIGRATIONS, SERVICE
from migrator.metrics.definition import Described, Kind

_HEAD = """# Metrics

Generated from `migrator/metrics/catalogue.py` by `make docs`. Served at `/metrics` (also on `metrics_listen`), as
Prometheus text or, where the scraper asks for it, OpenMetrics with the migration's id as an exemplar. A scrape asks no
QEMU and no host: it shows what the controller knows. `site` is a label of the scrape target.

Bytes, bytes per second, seconds, ratios of 0 to 1. Counters begin at 0 with the process, for every result and mode.
Series of a migration or an evacuation exist only while it is active; a held migration is active until a person resolves
it. A value that is not known has no series. `guest` is the guest's uuid (`guest-…`, a name of ours, where it has none);
the name is in `migrator_guest_info`.

## How many series

*M* active migrations (held ones among them), *E* evacuations under way, *H* hosts, *G* guests, at most 20,000: beyond
that, guests that cannot move are shown first and `migrator_guests_not_shown` counts the rest. Counters and histograms
are constant in number: no label of theirs holds an id, a name or a host. Failures and downtimes of guests are kept for
at most 10,000 guests, a day and an hour long. A guest's name is in no series but its own `migrator_guest_info`.

"""


def document() -> str:
    """The list of all metrics as Markdown."""
    return _HEAD + "".join(
        (
            _section("Counters and histograms", COUNTED),
            _section("Active migrations", MIGRATIONS),
            _section("Evacuations under way", EVACUATIONS),
            _section("Hosts and guests", INVENTORY),
            _section("The service", SERVICE),
            _buckets(),
        )
    )


def _section(title: str, described: Sequence[Described]) -> str:
    lines = [f"## {title}\n\n| metric | type | labels | series | what |\n| --- | --- | --- | --- | --- |\n"]
    for each in described:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.series} | {each.help} |\n")
    return "".join(lines) + "\n"


def _buckets() -> str:
    lines = ["## Buckets\n\n| histogram | bounds | why these |\n| --- | --- | --- |\n"]
    for each in COUNTED:
        if each.kind is Kind.HISTOGRAM:
            bounds = ", ".join(f"{bound:g}" for bound in each.buckets)
            lines.append(f"| `{each.name}` | {bounds} | {each.why} |\n")
    return "".join(lines)
