"""Grafana dashboards as code; ``python -m dashboards.build`` writes the JSON beside it."""

import warnings

# Version 2 of the format needs a Grafana that has not reached most sites; every Grafana takes version 1. The SDK warns
# of the other versions as its modules are imported and as a dashboard is built.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import grafana_foundation_sdk.builders.dashboard
    import grafana_foundation_sdk.builders.prometheus
    import grafana_foundation_sdk.builders.timeseries  # noqa: F401
