"""Options that every module of the collection has."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation of how a module reaches the service."""

    DOCUMENTATION = r"""
options:
  server:
    description:
      - Where the service is, C(unix:PATH) or C(https://HOST:PORT), as seen from where the task runs.
      - By default the environment variable E(MIGRATOR_SERVER), else the socket of a service on that machine.
    type: str
  token_file:
    description:
      - A file whose first line is a token of the service, on the machine where the task runs.
      - Not needed with a socket. By default the environment variable E(MIGRATOR_TOKEN).
    type: path
  ca_file:
    description: Certificates of the authorities that the service's own is checked against; by default the system's.
    type: path
  timeout:
    description: Seconds that one answer of the service may take. A preflight looks at two hosts.
    type: float
    default: 70
  away_timeout:
    description:
      - Seconds for which the service may be away while it is waited for, as when it is restarted.
      - What was begun goes on meanwhile.
    type: float
    default: 300
"""
