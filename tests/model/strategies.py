"""Identity parts with many colons, and identities, for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from aether_trio.model.identity import MAX_TOKEN_BYTES, Identity, IdentityError, check_token

# Near the separator: short texts over few characters, so that "a:", ":b" and ":" are drawn often.
_colons = st.text(alphabet="a:.é", min_size=1, max_size=6)
_any = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def _fits(last: bool) -> st.SearchStrategy[str]:
    def valid(text: str) -> bool:
        try:
            check_token(text, "part", last=last)
        except IdentityError:
            return False
        return True

    return (_colons | _any).filter(lambda text: len(text.encode()) <= MAX_TOKEN_BYTES and valid(text))


inner_tokens = _fits(last=False)
"""Valid parts that something follows: workspaces, implementations, user ids."""
last_tokens = _fits(last=True)
"""Valid last parts: specifiers and window ids, which may end with a colon."""
raw_tokens = st.text(alphabet="a:*> \x00\x1f\x7fé", max_size=8) | st.text(max_size=8)
"""Anything at all, valid or not."""

identities = st.one_of(
    st.builds(Identity.agent, inner_tokens, inner_tokens, last_tokens),
    st.builds(Identity.unique_task, inner_tokens, inner_tokens, last_tokens),
    st.builds(Identity.task, inner_tokens, inner_tokens, last_tokens),
    st.builds(Identity.user, inner_tokens, last_tokens),
    st.builds(Identity.orchestrator, inner_tokens, last_tokens),
    st.builds(Identity.bridge, inner_tokens, last_tokens),
    st.builds(Identity.service, inner_tokens, last_tokens),
    st.just(Identity.workflow_engine()),
    st.just(Identity.metrics_bridge()),
)
