"""Compiled rules in memory: those that were used last."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from threading import Lock

from aether_trio.model.workflows.definition import RuleDefinition
from aether_trio.model.workflows.reading import DefinitionErrors
from aether_trio.services.workflows.documents.not_compiled import LargeDocuments
from aether_trio.services.workflows.rules.rule_operations import compile_rule
from aether_trio.services.workflows.stored.rule_rows import StoredRule


class CompiledRules:
    """Keeps the last `most` rules that were used, also those that are not understood."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[int, int], RuleDefinition | DefinitionErrors] = OrderedDict()
        self._large = LargeDocuments()
        self._lock = Lock()
        """Large rules are compiled in other threads."""

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, id: int, changed: int) -> RuleDefinition | None:  # noqa: A002
        """Return a rule from memory, as it is since a change; None if it is not there.

        Raises DefinitionErrors.
        """
        key = id, changed
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
        if isinstance(found, DefinitionErrors):
            raise _anew(found)
        return found

    def compiled(self, stored: StoredRule) -> RuleDefinition:
        """Return a rule from memory, or compile it.

        Raises DefinitionErrors for what another release has stored, and NotCompiledError.
        """
        key = stored.id, stored.changed
        found = self.find(*key)
        if found is not None:
            return found
        self._large.ask(key, len(stored.document), partial(self._keep, stored))
        made = self._keep(stored)
        if isinstance(made, DefinitionErrors):
            raise _anew(made)
        return made

    def _keep(self, stored: StoredRule) -> RuleDefinition | DefinitionErrors:
        made: RuleDefinition | DefinitionErrors
        try:
            made = compile_rule(stored)
        except DefinitionErrors as error:
            made = _anew(error)
        with self._lock:
            self._kept[stored.id, stored.changed] = made
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return made


def _anew(error: DefinitionErrors) -> DefinitionErrors:
    """Return an error without the frames that it has passed: it would keep them."""
    return DefinitionErrors(error.problems, error.warnings)
