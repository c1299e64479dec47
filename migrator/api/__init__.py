"""The values that parts of the program exchange, in the program and on every wire: documents, events, commands.

Plain values, which :mod:`migrator.http` and :mod:`migrator.mqtt` serialise; nothing here acts.

- Commands: `requests` is who asks and under which key, `commands` a model for each verb, `received` one that was parsed
  and authorised, `replies` the answers and refusals. `field_errors` says what is wrong with a field, `trace_context` is
  the trace that a command belongs to.
- Documents: `documents` of migrations, and the base of all; `evacuation_documents`, `inventory_documents` (hosts and
  guests; `inventory_pages` are lists of them), `plan_documents`, `saved_documents`, `service_documents`,
  `site_documents`.
- `events` are what happened, each kind a class; `queries` the filters and batches of questions.
"""
