"""Preflight: two QEMUs and two hosts compared, and the state of a guest that would not travel. Pure."""
