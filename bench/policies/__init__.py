"""Comparison of policies: the peers' algorithms and ours on the same guests and the same link."""
