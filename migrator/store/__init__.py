"""Where records and the journal are kept.

- `journal` is what the service must not forget: `journal_reader` finds it again, `rows` how it stands there,
  `retention` what is forgotten, `housekeeping` when; `live_documents` what is not journalled and yet shown by all.
- `place` is where it is. `database` has many readers and a `writer` (of leases another) on one of two backends
  (`backend`, `schema`, and `alembic` for the steps to it): `sqlite` (a file) or `postgresql` (a server that several
  controllers may use; `server_errors` are its errors in words, `signals` tells others that there is something to look
  at). `copying` brings a file to a server.
- `leases` say who may do what alone, checked in the transaction of each write that they allow: `sole_use` which of
  several controllers acts while the others stand by, `assignments` what those drive for it, `controllers` which of them
  are there (`presence`: this one among them); `waiting_commands` wait for the one that acts; `stuck_leases` are those
  that a clock set back would keep for ever; `lock` is for a journal in a file; `kept_token` tells a controller that
  began anew from one of a copied state directory.
- `records` and `step_records` are how far a migration got, `belonging` whether they belong to the journal; with a
  server they are in the database too (`step_rows`), where another controller can see them.
- `samples` are figures of migrations, `tokens` the access over TCP; `experience` and `learned_paths` are what
  ``migrator direct`` has learned.
"""
