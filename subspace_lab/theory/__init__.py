"""Closed-form predictions about masked low-rank adapters, one topic a file."""
