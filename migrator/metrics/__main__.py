"""``python -m migrator.metrics``: the list of all metrics as Markdown."""

import sys

from migrator.metrics.document import document

sys.stdout.write(document())
