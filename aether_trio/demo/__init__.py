"""`python -m aether_trio.demo`: a day trip, planned through a real gateway that is killed in the middle of it.

A gateway process, two agents and a user's window, all written with the published SDK (scitrera-aether-client) as any
program of a user would be. What is shown is what the user's window received; what is claimed at the end was checked.

story.py holds the words, researcher.py and people.py the participants, processes.py what can be killed, screen.py the
output, checks.py the verdict, and play.py the order of events. Needs the SDK: `pip install 'aether-trio[sdk]'`.
"""
