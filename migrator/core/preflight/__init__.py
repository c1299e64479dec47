"""Whether a guest can move: two QEMUs and two hosts compared, and what a guest has that would not travel. Pure."""
