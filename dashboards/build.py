"""``python -m dashboards.build [--check]``: the dashboards' JSON, written or compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dashboards.evacuation import evacuation
from dashboards.fleet import fleet
from dashboards.host import host
from dashboards.migration import migration
from dashboards.service import service

HERE = Path(__file__).parent


def texts() -> dict[str, str]:
    """The text of every file, by its name."""
    made = {
        "fleet": fleet(),
        "evacuation": evacuation(),
        "host": host(),
        "migration": migration(),
        "service": service(),
    }
    return {f"{name}.json": json.dumps(each, indent=2, sort_keys=True) + "\n" for name, each in made.items()}


def main() -> int:
    """Write them; with ``--check`` only say whether they are up to date."""
    stale = []
    for name, text in texts().items():
        path = HERE / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"dashboards/{', dashboards/'.join(stale)} not up to date: run make docs\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
