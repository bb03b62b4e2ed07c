"""The transport of our own binary framing (docs/wire.md): a codec (wire/framing), a socket, and one
task.
"""
