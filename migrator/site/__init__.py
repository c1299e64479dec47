"""The hosts of the site as the engine uses them: discovery, checks, destinations, over SSH, QMP and processes."""
