"""Runs read back: recorded by this toolkit, or adapters that another tool trained."""
