"""HTTP: the API under ``/api/v1``, its events, the page, and what Prometheus and probes ask."""
