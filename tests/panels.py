"""What the dashboards ask, as they would ask it."""

from __future__ import annotations

import json

from dashboards.build import texts

BOARDS = {name: json.loads(text) for name, text in texts().items()}


def panel_queries(*, rate_interval: str, host: str, guest: str) -> list[tuple[str, str]]:
    """Every query of every panel with its dashboard and title, the variables put in."""
    chosen = {
        "$__rate_interval": rate_interval,
        "$job": "migrator",
        "$instance": ".+",
        "$host": host,
        "$guest": guest,
    }
    found = []
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                expr = target["expr"]
                for variable, value in chosen.items():
                    expr = expr.replace(variable, value)
                assert "$" not in expr
                found.append((f"{name}: {panel['title']}", expr))
    return found
