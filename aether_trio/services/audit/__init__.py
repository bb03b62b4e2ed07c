"""The audit log: its writer, its signed trees, its checks, and its requests.

    put(event)        writer.py    a queue, and batches        ──▶ audit_log, audit_trees
    append(events)    writer.py    in the change's transaction ──▶ audit_log, audit_trees
    heads.py          each minute, a signed head of the tree   ──▶ audit_heads, a file
    verify.py         reads all of them; needs public keys alone
    service.py        answers audit_query and submit_audit_event

Other services import writer.py alone.
"""
