"""What the parts of the program say to each other and on every wire: documents, events, commands.

Plain values, which :mod:`migrator.http` and :mod:`migrator.mqtt` serialise; nothing here acts.
"""
