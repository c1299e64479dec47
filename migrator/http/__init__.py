"""HTTP: the API under ``/api/v1``, its events, the page, and what Prometheus and probes ask.

- Sockets: `listeners` are bound as `from_settings` says, `acceptor` lets connections in as `admission` allows, before
  TLS; `connection` is one of them, `wellformed` what a request must be. `server` serves the `app`, `serving` as
  configured.
- Who asks: `access` finds callers and their rights, `session` is the page's way in, `limits` what one caller may take.
  A caller that is limited to some hosts sees what `limited_queries` has for him.
- Routes: `command_routes`, `query_routes`, `stream` (events), `page_routes`, `probes`; `dependencies` is what they
  need, `problems` every error, `role_headers` what a controller that stands by adds. `openapi` prints the description.
"""
