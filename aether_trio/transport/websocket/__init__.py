"""HTTP/1.1 and WebSocket: the transport of browsers.

`server.HttpServer` is the TransportServer. It reads requests (http.py), serves the few files of the
gateway (files.py), and for GET /v1/connect judges the upgrade (handshake.py, origins.py) and makes
a Link of the connection (link.py).

frames.py takes the frames apart, h11 the requests. trio-websocket is not used: measured, it costs
13 KiB more for each idle connection (a reader task, a channel, a lock, events and the kept HTTP
state), 16 us more for each message echoed, and its sending is a coroutine, so that each burst would
need a task; here a connection is one task and sends without one.
"""
