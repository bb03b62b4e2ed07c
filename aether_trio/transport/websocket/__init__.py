"""The gateway's WebSocket transport for browsers, over HTTP/1.1.

trio-websocket is not used: measured, it costs 13 KiB more for an idle connection and 16 µs more for
an echoed message, and its sending is a coroutine, so that each burst would need a task.
"""
