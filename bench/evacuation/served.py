"""``python -m bench.evacuation.served STRATEGY COMMAND...``: the service, but guests leave as others let them."""

from __future__ import annotations

import sys

from bench.evacuation import peers
from migrator.cli import main

if __name__ == "__main__":
    peers.install(sys.argv[1])
    sys.argv = ["migrator", *sys.argv[2:]]
    main()
