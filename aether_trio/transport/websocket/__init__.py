"""The gateway's WebSocket transport for browsers, over HTTP/1.1.

trio-websocket is not used: measured, it costs 13 KiB more for each idle connection (a reader task,
a channel, a lock, events and the kept HTTP state), 16 us more for each message echoed, and its
sending is a coroutine, so that each burst would need a task; here a connection is one task and
sends without one.
"""
