"""Who moves which guest inside which policy: the peers' algorithms and ours on the same guests and the same link."""
