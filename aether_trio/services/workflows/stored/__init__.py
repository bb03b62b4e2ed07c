"""What is defined, in rows: versions, owners, graphs, and the events they take."""
