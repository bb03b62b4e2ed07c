"""Run many users of one transport against a gateway, and report what they saw.

    python -m loadtests --transport framed --users 10000 --minutes 2 --shape chat

Two kinds of process. The coordinator (cli, coordinator, report) starts the gateway and the workers,
tells them what to do, samples the gateway and puts everything together; it has no gevent. A worker
(worker, crew, member, links) is locust on gevent with a part of the users. They talk in lines of
JSON over a socket pair.

Nothing here decides what is a good figure; `bench/` measures what a message costs, this shows what
many clients meet.
"""
