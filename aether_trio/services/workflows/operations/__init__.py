"""Operations on workflows and executions, by their numbers."""
