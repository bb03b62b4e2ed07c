"""The demo: two agents and a user plan a trip while processes are killed.

`python -m aether_trio.demo` starts a gateway process, two agents and a user's window. The
participants use the published SDK (scitrera-aether-client), as users' programs do. The screen shows
what the user's window received; the claims at the end were checked.

story.py has the texts, researcher.py, people.py and keeper.py the participants, processes.py the
processes, screen.py the output, checks.py the claims, and play.py the order of events. Needs the
SDK: `pip install 'aether-trio[sdk]'`.
"""
