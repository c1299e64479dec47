"""Emptying hosts: what to do next with every guest, decided of a snapshot.

`plan` says of a `snapshot` of the site which `actions` are due: `tending` what becomes of each evacuation, `wanting`
who wants a place, `places` who goes where, `transfers` how the schedule sees them, `hurrying` who goes to postcopy so
that others need not wait, `groups` whose guests are switched together, `saving` who is saved into a file as a last
resort. `forecast` says what will come of it, `preview` the same of an evacuation that has not begun. An evacuation is a
value (`evacuation`) with an `entry` for each guest and `states` of both; `window` is when it may run, `limits` what a
plan keeps to, `preparations` how long it takes until a migration may send. A `roll` empties and fills hosts one by one.
A plan goes by what has changed since the one before: `entries` know that, `active_moves` keep how the schedule sees
each migration. `assignments` says which controller drives what.
"""
