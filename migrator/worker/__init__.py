"""A process that computes for the service: pure functions of :mod:`migrator.core`, on values that it is sent.

Forecasts and plans of many guests take a tenth of a second and more; the loop that steers migrations waits for none.
One is computed at a time, a few wait, and one that takes too long is ended with its process.
"""
