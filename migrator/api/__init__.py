"""The values that parts of the program exchange, in the program and on every wire: documents, events, commands.

Plain values, which :mod:`migrator.http` and :mod:`migrator.mqtt` serialise; nothing here acts.
"""
