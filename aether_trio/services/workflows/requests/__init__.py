"""What operations on workflows share: request, answer, access, and apply."""
