"""Preflight: two QEMUs and two hosts compared, and the state of a guest that would not travel. Pure.

`compare` compares two QEMUs, `host_*` two hosts, and `new_images` says what would be made at one; `state_kinds` says
what becomes of each kind of state, and `non_migrated_state` what does not travel; `stream_tls` decides whether a stream
is encrypted.
"""
