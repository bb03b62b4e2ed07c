"""Flow control: what may begin, waits, or is dropped."""
