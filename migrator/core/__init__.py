"""Decisions, apart from how they are carried out: no I/O, no clock, no asyncio.

- The rooms are packages: `migration` (what is safe, when to switch, what it will cost), `preflight`, `process`,
  `placement`, `schedule`, `drain`, and `findings`, the catalogue of what preflight can say.
- `model` has the words of all: what an end shows, samples, findings, decisions. `policy` is what may be done to a guest
  (`policy_words` says it to a person), `inventory` hosts and guests as they are known.
- `hooks` are the site's commands, `cold_start` whether a guest is shut down and started anew, `saved_guest` a guest in
  a file, `shut_off_guest` one that is shut off, `managed_guest` one of libvirt, `image_removal` what becomes of images
  at the source.
- What migrations teach: `link_learning` learns `link_speeds`, `guest_experience` what a guest does, `pair_overhead`
  what a pair of QEMUs costs.
"""
