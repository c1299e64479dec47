"""The state of the service in another process, which answers for it: a snapshot, then what changes, and requests.

`publisher`, at the process that drives migrations, sends a snapshot, then events as they are published and what no
event tells, a millisecond at a time; whoever does not take what it is sent is cut off. `state` puts them together at
the other end, `queries` answers from that and from the journal, `requests` carries commands back; between them is a
`channel`. Neither knows how the other process is started or what it serves. Where controllers share a journal,
`live_writer` writes the state there, and the `follower` of one that stands by has it from there and from the events.
"""
