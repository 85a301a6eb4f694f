"""The laws of the gates, one class each; `theory.mask_law` makes them by name."""
