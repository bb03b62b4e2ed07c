"""Tests of services/workflows."""
