"""The key-value store, through the service and through its programs."""
