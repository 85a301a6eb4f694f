"""Seeds, intervals and paired tests."""
