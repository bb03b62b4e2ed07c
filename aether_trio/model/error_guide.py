"""What each error code means and what to do about it.

`aether errors` and docs/errors.md show this. A code is unique within its Where: the status names
of ended connections are used by the Python client too. tests/docs checks that each code of the
source has an entry here, and that no entry is left of a code that is gone.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class Where(enum.StrEnum):
    """Where a client meets a code."""

    REQUEST = "request"
    """The answer to a request or message: an ErrorResponse, a NACK, or an error text."""
    ENDING = "connection"
    """The end or refusal of a connection: a gRPC status, a framed ERROR, WebSocket's 41xx, 42xx."""
    FRAMING = "framing"
    """An ERROR frame of the binary framing about a mistake in the frames."""
    WEBSOCKET = "websocket"
    """A close code of WebSocket about a mistake in the frames."""
    CLIENT = "client"
    """`code` of an exception that the Python client raises without an error of the gateway."""
    EXIT = "command line"
    """The exit code of an `aether` command."""


class ErrorEntry(NamedTuple):
    """One code: its cause, and what to do about it."""

    code: str
    where: Where
    cause: str
    remedy: str


def _entries(where: Where, *rows: tuple[str, str, str]) -> tuple[ErrorEntry, ...]:
    return tuple(ErrorEntry(code, where, cause, remedy) for code, cause, remedy in rows)


ERROR_GUIDE: Final[tuple[ErrorEntry, ...]] = (
    *_entries(
        Where.REQUEST,
        (
            "ERR_INVALID_TOPIC",
            "The target is no topic, or a topic that no participant can own.",
            "Correct the topic. It has the form ag::WORKSPACE::IMPLEMENTATION::SPECIFIER, us::USER and so on.",
        ),
        (
            "ERR_SV_UNAVAILABLE",
            "No instance of the service is connected, so the message was not kept.",
            "Start the service (`aether sessions` shows what is connected), then send again.",
        ),
        (
            "ERR_PAYLOAD_TOO_LARGE",
            "The payload is longer than limits.payload_bytes, or the answer would be longer than clients accept.",
            "Send a reference (a KV key, a checkpoint) instead of the data, or ask for a smaller page.",
        ),
        (
            "ERR_RATE_LIMITED",
            "The connection sends messages or requests faster than its limit.",
            "Wait for retry_after_ms, then send again. The limits are `limits.…` in `aether config show`.",
        ),
        (
            "ERR_WORKSPACE_RATE_LIMITED",
            "All participants of the workspace together send faster than its limit.",
            "Wait for retry_after_ms. An administrator can raise it: `aether quotas set`.",
        ),
        (
            "ERR_QUOTA_001",
            "A quota is used up: the identity's message rate, or a number or size of stored items.",
            "If it is retryable, wait. Otherwise delete what is not needed, or have the quota raised: `aether quotas`.",
        ),
        (
            "ERR_PERMISSION_DENIED",
            "This kind of participant may never do that, no rule allows it, or the credential or grant does not reach it.",
            "The text names the missing right. `aether access explain` shows why; an administrator grants it.",
        ),
        (
            "ERR_METRIC_INVALID",
            "The payload of a metric message is no `Metric`.",
            "Encode a `Metric`, as docs/wire.md says.",
        ),
        ("ERR_METRIC_EMPTY", "The metric message has no entries.", "Send at least one entry."),
        (
            "ERR_METRIC_INVALID_ENTRY",
            "An entry of the metric has no name, or a value that is no finite number.",
            "Correct the entry that the text names.",
        ),
        (
            "ERR_METRIC_NEGATIVE_FORBIDDEN",
            "A metric has a negative quantity, and the sender may not send such.",
            "Send quantities of 0 and more, or have the right granted.",
        ),
        (
            "ERR_CIRCUIT_OPEN",
            "Access data, a grant or the audit log could not be read or written, so nothing was decided.",
            "Try again. If it lasts, the gateway's storage is away: see its log and `/readyz`.",
        ),
        (
            "ERR_PUBLISH_FAILED",
            "The topic log could not be written: a full disk, or a database that is away.",
            "Send again later. Nothing of the message was kept.",
        ),
        (
            "ERR_INVALID_PRINCIPAL",
            "The operation is for another kind of participant, as SwitchWorkspace is for users.",
            "Connect as the kind of participant that may do this.",
        ),
        (
            "ERR_WORKSPACE_SWITCH_FAILED",
            "The new workspace has a malformed name, or could not be looked up.",
            "Correct the name; try again if the text speaks of storage.",
        ),
        (
            "ERR_NOT_IMPLEMENTED",
            "The gateway does not implement the operation, or the message has an empty or unknown payload.",
            "Use another operation, or a newer gateway. Nothing was done.",
        ),
        (
            "ERR_INVALID_IDENTIFIER",
            "A name has characters or a length that names may not have.",
            "Use the characters that the text names.",
        ),
        (
            "ERR_TASKS_NOT_ENABLED",
            "A gateway of the reference has no tasks.",
            "Use a gateway with tasks. This project's always has them.",
        ),
        (
            "ERR_INVALID_ARGUMENT",
            "A field of the request is malformed, out of its bounds, or does not fit the others.",
            "Correct the field that the text names.",
        ),
        (
            "ERR_INTERNAL",
            "A defect of the gateway. Other connections are not affected.",
            "Report it with the gateway's log lines of that moment, which have the traceback.",
        ),
        (
            "ERR_TASK_CREATE_FAILED",
            "The task could not be created; the text says why.",
            "Do what the text says. With an idempotency key the same request can be repeated safely.",
        ),
        (
            "TASK_PAYLOAD_TOO_LARGE",
            "The payload of a task is longer than limits.task_payload_bytes.",
            "Store the data in KV or a checkpoint, and put its key into the payload.",
        ),
        (
            "KV_ERROR",
            "The operation on the key-value store was refused or failed; the text says why.",
            "Do what the text says.",
        ),
        (
            "BACKPRESSURE",
            "A notice: progress was dropped, or messages were deleted by retention before this client read them.",
            "Read faster, or raise log.retention_age_s. No request has failed.",
        ),
        (
            "ERR_EXTENSION_UNSUPPORTED",
            "The client requires a protocol extension that this gateway does not know.",
            "Connect without the requirement, or to a newer gateway.",
        ),
        (
            "ERR_PREFIX_CONFLICT",
            "A resource prefix that is being registered belongs to another owner.",
            "Choose another prefix, or have the other registration removed.",
        ),
        (
            "ERR_AUDIT_TYPE_FORBIDDEN",
            "A participant may not submit audit events of that type.",
            "Use one of the types that participants may submit; docs/audit.md names them.",
        ),
        (
            "ERR_AUDIT_RATE_LIMITED",
            "The participant submits audit events faster than its limit.",
            "Wait for retry_after_ms.",
        ),
        (
            "ERR_AUDIT_DISABLED",
            "The gateway keeps no audit log, or takes no events of participants.",
            "Have it enabled in the settings `audit.…`.",
        ),
        (
            "ERR_SEQUENCE_FORGOTTEN",
            "A numbered send is older than what the gateway remembers, so it cannot tell whether it was sent before.",
            "Look whether the message arrived, then send it under a new number.",
        ),
        (
            "ERR_OUTCOME_UNKNOWN",
            "The storage did not say whether the write was done, and could not be asked in time.",
            "Look whether it was done before you try again. With an idempotency key you need not look.",
        ),
    ),
    *_entries(
        Where.ENDING,
        (
            "CANCELLED",
            "Another client has resumed the session, or an operator has ended it.",
            "Do not reconnect without being asked to.",
        ),
        ("UNKNOWN", "A defect of the gateway.", "Reconnect; report it with the gateway's log."),
        (
            "INVALID_ARGUMENT",
            "The first message is no InitConnection, the identity is malformed, or a message cannot be decoded.",
            "Correct what the text names.",
        ),
        (
            "DEADLINE_EXCEEDED",
            "No InitConnection came in time, or the client's own deadline passed.",
            "Reconnect. Set no deadline on the stream.",
        ),
        ("NOT_FOUND", "A participant or session that the connection names does not exist.", "Correct the name."),
        (
            "ALREADY_EXISTS",
            "The identity is connected already; the text begins with DuplicateIdentityError.",
            "Use another specifier, or end the other client: `aether sessions --disconnect ID`.",
        ),
        (
            "PERMISSION_DENIED",
            "The credential is for another participant or workspace, or no rule lets the participant read its workspace.",
            "Connect as whom the credential is for; `aether access explain` shows the missing rule.",
        ),
        (
            "RESOURCE_EXHAUSTED",
            "The workspace has all the connections that it may have, or a message is over the limit.",
            "Reconnect later, or have the quota raised: `aether quotas set`.",
        ),
        (
            "FAILED_PRECONDITION",
            "A required extension is not known to the gateway.",
            "Connect without it, or to a newer gateway.",
        ),
        ("ABORTED", "The gateway gave up the connection for a reason that will pass.", "Reconnect."),
        (
            "UNIMPLEMENTED",
            "The transport is switched off, or the gRPC method or encoding is unknown.",
            "Use another transport or method.",
        ),
        (
            "INTERNAL",
            "The gateway could not keep the connection, by a defect or a broken transport.",
            "Reconnect; report it if it happens again.",
        ),
        (
            "UNAVAILABLE",
            "The gateway drains before a stop, or its storage cannot be read.",
            "Reconnect after a pause, to any node.",
        ),
        (
            "UNAUTHENTICATED",
            "The credential is missing, unknown, expired or revoked, or the participant is locked or throttled.",
            "Get a valid credential (`aether tokens create`, `aether keys`), then connect again.",
        ),
    ),
    *_entries(
        Where.FRAMING,
        (
            "BAD_PREFACE",
            "The peer speaks something else than the framing.",
            "Connect with the transport that the port serves.",
        ),
        (
            "UNSUPPORTED_VERSION",
            "The major version of the framing is not known.",
            "Use a client of the gateway's version.",
        ),
        ("FRAME_TOO_LARGE", "A frame is longer than the receiver's limit.", "Send smaller messages."),
        ("UNKNOWN_FRAME", "A frame has an unknown type below 0x80.", "Correct the client."),
        ("MALFORMED", "A length, flag, number or text inside a frame is wrong.", "Correct the client."),
        (
            "BAD_HELLO",
            "The HELLO is no map of the right types, or asks for a newer minor version.",
            "Correct the client's HELLO.",
        ),
        ("ILLEGAL_FRAME", "A frame came from the wrong side, or at the wrong time.", "Correct the client."),
        ("BAD_SEQUENCE", "The numbers of SEND, ACK or NACK are out of order.", "Number messages from 1 without gaps."),
        (
            "BAD_CHANNEL",
            "A channel is unknown, open already, or one too many.",
            "Use the channels that the gateway has opened.",
        ),
        ("BAD_OFFSET", "Offsets of a channel do not grow.", "Acknowledge offsets that were delivered."),
        (
            "BAD_CREDIT",
            "A delivery without credit, or credit that does not fit.",
            "Count the credit as docs/wire.md says.",
        ),
        ("TRUNCATED", "The stream ended inside a frame.", "Reconnect."),
        (
            "CALM",
            "Too many frames that cost the other side work.",
            "Send fewer PINGs and empty frames; reconnect after a pause.",
        ),
        ("TIMEOUT", "No HELLO or no InitConnection came in time.", "Reconnect, and send them at once."),
    ),
    *_entries(
        Where.WEBSOCKET,
        ("1002", "A frame breaks RFC 6455, or is of a kind that the transport does not use.", "Correct the client."),
        (
            "1003",
            "Text was sent on the binary subprotocol, or the other way round.",
            "Send what the chosen subprotocol carries.",
        ),
        ("1007", "A text is no UTF-8.", "Correct the client."),
        ("1009", "A message is longer than the limit.", "Send smaller messages."),
    ),
    *_entries(
        Where.CLIENT,
        (
            "BAD_ADDRESS",
            "The address is malformed, or does not fit the client's other arguments.",
            "Write aether://HOST:PORT, or aethers:// for TLS.",
        ),
        (
            "UNREACHABLE",
            "No connection to the address, or the server closed it during the handshake.",
            "Check that the gateway runs, and its address and port.",
        ),
        (
            "CONNECT_TIMEOUT",
            "The gateway could not be reached within the time limit, in all attempts.",
            "Check the address; the text has the last failure.",
        ),
        (
            "HANDSHAKE_TIMEOUT",
            "The server accepted the connection and did not answer as a gateway does.",
            "Check that a gateway listens there, and whether it wants TLS.",
        ),
        (
            "TLS_REFUSED",
            "The TLS handshake failed: an untrusted, expired or missing certificate, or no TLS.",
            "The text says which; give the CA, certificate and key, or use aether:// without TLS.",
        ),
        (
            "BAD_ALPN",
            "A TLS server chose another protocol than the client's transport.",
            "Check that the port is a gateway's and not that of a proxy that ends TLS.",
        ),
        (
            "BAD_SUBPROTOCOL",
            "A WebSocket server chose no subprotocol of Aether.",
            "Check that the address is a gateway's.",
        ),
        (
            "BAD_HTTP2",
            "The server does not speak HTTP/2 as gRPC needs it.",
            "Check the address, or a proxy in between.",
        ),
        (
            "BAD_WEBSOCKET",
            "The server does not speak WebSocket as expected.",
            "Check the address, or a proxy in between.",
        ),
        (
            "UNSUPPORTED_DATA",
            "The gateway sent text on a binary WebSocket.",
            "Report it: a defect of the gateway, or a proxy in between.",
        ),
        (
            "MESSAGE_TOO_BIG",
            "The gateway sent a message that is longer than this client accepts.",
            "Report it, or raise the client's limit.",
        ),
        (
            "INVALID_FRAME_PAYLOAD_DATA",
            "The gateway sent bytes that are no message of the protocol.",
            "Report it: a defect of the gateway, or a proxy in between.",
        ),
        ("PROTOCOL_ERROR", "The gateway delivered more than it had credit for.", "Report it: a defect of the gateway."),
        (
            "CONNECTION_LOST",
            "The connection was cut. `in_doubt` says whether the request may have been done.",
            "The client reconnects; repeat what was not in doubt, and look up the rest.",
        ),
        (
            "TIMEOUT",
            "No answer came within the time limit. The request may have been done.",
            "Look whether it was done, or repeat it with the same request_id or idempotency key.",
        ),
        ("CLIENT_CLOSED", "The client is used outside of its `async with` block.", "Make the call inside the block."),
        (
            "MESSAGE_TOO_LARGE",
            "The message is longer than the transport allows.",
            "Send a reference (a KV key, a checkpoint) instead of the data.",
        ),
        (
            "BODY_TOO_LARGE",
            "An HTTP body is longer than the limit of the call.",
            "Raise the limit of the call, or stream the body.",
        ),
        ("REFUSED", "The gateway refused the request and gave no code; the text says why.", "Do what the text says."),
        (
            "UNEXPECTED_ANSWER",
            "The gateway's answer does not fit the request.",
            "Report it: a defect, or another version of the gateway.",
        ),
        (
            "FEED_OVERFLOW",
            "A feed that must lose nothing was read too late, and has lost an item.",
            "Read feeds promptly, then open the feed again from the position that you know.",
        ),
        (
            "MESSAGES_ABANDONED",
            "Tasks that failed hold all messages that may be unacknowledged.",
            "Acknowledge or release messages in a `finally`, then reconnect.",
        ),
        (
            "NO_QUESTION",
            "The task asks no person a question now.",
            "Read the task again: it goes on, has ended, or waits for something else.",
        ),
        (
            "TASK_OVER",
            "A call on a task that was taken away, has failed, or has ended.",
            "End the block; another worker has the task, or it is over.",
        ),
        (
            "FORCE_DISCONNECT",
            "An operator has ended the session.",
            "The client stays away; the text has the operator's reason.",
        ),
        (
            "HTTP_1_1_REQUIRED",
            "The server at the address wants HTTP/1.1, so it is no gRPC port.",
            "Use the address of the gateway's port, or the WebSocket transport.",
        ),
        (
            "TASK_FAILED",
            "`tasks.run` waited for a task that did not end well; the text has its reason.",
            "The text says why; `aether tasks show` has more.",
        ),
        (
            "RESULT_TOO_LARGE",
            "The result of a task is longer than 512 KiB.",
            "Save it as a checkpoint, and give its key: `task.complete(result_checkpoint=…)`.",
        ),
        (
            "NOT_IMPLEMENTED",
            "The gateway of another project does not serve the operation.",
            "Use a gateway of this project, or another operation.",
        ),
        ("PROXY", "The service behind a proxied HTTP request failed.", "The text says why; look at the service."),
        ("TUNNEL", "The other end of a tunnel closed it with an error.", "The text says why; look at the other end."),
    ),
    *_entries(
        Where.EXIT,
        ("1", "The gateway said no to the operation, or something failed.", "Do what the message says."),
        ("2", "The command line is wrong.", "See `aether COMMAND --help`."),
        (
            "3",
            "The settings are wrong, or a gateway cannot start with them.",
            "`aether config check` names the setting.",
        ),
        ("4", "The gateway cannot be reached.", "Check that it runs, and --gateway."),
        ("5", "The gateway refused the connection.", "Check the credential, the identity and the TLS files."),
        (
            "124",
            "What a command waited for did not happen within `--timeout`.",
            "Wait again, or longer; `aether tasks show` says what a task is at.",
        ),
        ("130", "Ctrl-C.", "Nothing is left half done; run it again when you want to."),
        ("141", "Nothing reads the output any more, as after `| head`.", "Nothing to do."),
    ),
)
