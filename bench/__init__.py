"""The bench: what a gateway of the Aether protocol costs, in echoes.

`python -m bench` starts one server process per scenario and drives it from this process, which
speaks the protocol in bytes laid by hand so that the load takes little of a small machine.
docs/performance.md says how to read the figures.

How the parts fit: `cli` reads options; `runner` starts what a scenario needs; `turns` takes its
windows in turns with those of the raw echo (`echo`); `scenarios` say what is sent and counted;
`loop` moves bytes; a transport in `transports` turns messages into bytes and back; `servers` and
`process` start what is measured and read its CPU and memory; `units` is the arithmetic; `results`,
`compare` and `table` keep, judge and show it. A new scenario is one class, a new transport is one
codec.
"""
