"""Scenarios of the SDK's tests with our own client, on its transports."""
