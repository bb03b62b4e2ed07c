"""What follows events: rules, triggers, and those that could not act."""
