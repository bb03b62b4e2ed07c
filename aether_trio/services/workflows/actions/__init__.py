"""Actions, done for an owner, and dead letters of those that could not be done."""
