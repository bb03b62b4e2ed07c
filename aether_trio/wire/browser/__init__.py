"""The three codecs of the WebSocket transport, without sockets.

One WebSocket message is one UpstreamMessage or DownstreamMessage.

    aether.v1.proto     binary   serialized protobuf
    aether.v1.msgpack   binary   MessagePack of a map of fields; bytes are bin
    aether.v1.json      text     proto3 JSON with the proto's own snake_case names

The name is the WebSocket subprotocol. codecs.py has the codecs, json_mapping.py what JSON and
MessagePack have in common.

    codec = CODECS["aether.v1.json"]
    message = codec.decode(data)                        # gateway: an UpstreamMessage
    data = codec.encode(message.SerializeToString())    # gateway: a DownstreamMessage as bytes
    data = codec.encode_upstream(message)               # client
    message = codec.decode_downstream(data)             # client
"""

from __future__ import annotations

from aether_trio.wire.browser.codecs import CODECS, JSON, MSGPACK, PROTO, Codec

__all__ = ["CODECS", "JSON", "MSGPACK", "PROTO", "Codec"]
