"""Preflight: two QEMUs and two hosts compared, and the state of a guest that would not travel. Pure.

- Two QEMUs: `compare` compares the `facts` that each shows, as `comparisons` lists them; `cpu_flags` reads CPUID.
  `stream_tls` decides whether a stream is encrypted.
- Two hosts (`host_pair`): `host_checks`, and in parts `host_disks`, `host_files`, `host_network`, `host_process`;
  `managers` says who else keeps the guest.
- What would be made at a target: `new_images`; `disk_images` can be copied as they are, `disk_room` is the room for
  them.
- What does not travel: `state_kinds` says what becomes of each kind of state, `non_migrated_state` what stays behind.
"""
