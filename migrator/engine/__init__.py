"""Drives migrations through the ports; knows no QMP, no file and no socket.

- `migration` is one migration. `registry` has all migrations and evacuations; `sessions` and `evacuations` begin them
  and note what becomes of them, `windows` begins what is scheduled, `rolls` carries out what a roll says; `recovery`
  goes on with what another controller left, `announcer` tells others (`evacuation_documents`). `rules` are the
  configuration.
- `commands`: `commands/dispatcher` takes every command, `commands/handlers` carry it out, `reservations` are what
  somebody is about to change, `commands/settlement` joins what has ended with its command. `queries` answers.
- `inventory` looks at hosts and keeps what is known of them (`known_hosts`), `look_schedule` says when; `snapshots`
  takes the site as it is, `reconciler` carries out what `core/drain` says of it, at every change, but leaves the loop
  to others for four times as long as a plan takes, a tenth of a second at most; `preview` is the same plan of an
  evacuation that nobody has begun (`thread_computing` computes it where there is no process for that).
  `placement_findings` is what the inventory has against a move, the same for the check and the act; `disk_room` holds
  the disks that a check says are copied against those of others.
- `guest_experiences` and `pair_overheads` keep what migrations taught; `path_speeds` learns from all streams what links
  and paths carry, and says who gives way while another is switched (`switch_turns`). `dirty_rates` measures guests
  before it is planned, `look_pace` has far migrations looked at more rarely on a busy loop.
- `duplicates` sees uuids that run twice; `sweeper` removes what ended guests left, `image_removals` the images that
  moved guests did.
- `event_bus` numbers and delivers events; a journal that several controllers write gives the numbers itself, in the
  transaction that writes them. `journal_writer` journals documents with the events that tell of them, and then lets the
  bus tell those outside.
- Where several controllers share a journal, `spreading` has others drive migrations (`handing_over` chooses which):
  each is a session of `remote_sessions`, kept as its driver reports it in the journal, asked by requests there, and
  taken back when that driver has let go of it or its lease has ended. `assigned_migrations` is the driver's side, the
  same sessions (`driven_migration`) under an assignment (`ports/assignments`), whose number marks QEMUs and fences what
  is written.
- `clock` is the loop's. `controller` puts all of these together, and suspends once another may have the lease: it parks
  what is not past its switch, and goes on when the lease is its own again.
"""
