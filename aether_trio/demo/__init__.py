"""The demo: two agents and a user plan a trip while processes are killed.

`python -m aether_trio.demo` starts a gateway process, two agents and a user's window. The
participants use the published SDK, as users' programs do: `pip install 'aether-trio[sdk]'`. The
screen shows what the user's window received; the claims at the end were checked. The keeper, the
scout and the user's phone use this package's client; the phone applies and watches a workflow.
"""
