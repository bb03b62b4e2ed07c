"""State machines and their instances."""
