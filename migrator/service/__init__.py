"""The service: joins the siblings below into one program.

`serve` joins the parts and `reload` has them follow the configuration; `notify` tells systemd, `event_log` is the log,
`garbage` collects without holding anybody up. There are two processes, as what answers many shall not hold up what
steers:

- The one that drives migrations answers neither HTTP nor MQTT. `entrances` starts the other with the listening sockets
  and one end of a socket pair, watches it and begins it anew.
- The other is `entrance`; `entrance_commands`, `entrance_mqtt` and `left_sessions` (commands of controllers that are
  gone) run there, `entrance_settings` is what it is given to begin, `entrance_requests` what it may ask for.

Where controllers share a journal, `shared_journal` has one stand by until its turn comes, and answer meanwhile
(`entrance_role`), while `driving` drives what the one that acts has given it. `forwarded_commands` leaves commands in
the journal for the one that acts, whose `waiting_commands` carries them out; `reports` says who is there, `differences`
which are configured otherwise. `waiting_upgrade` waits where the tables must be migrated and older controllers would
not understand them.
"""
