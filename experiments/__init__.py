"""The registered experiments on why rank dropout helps (docs/experiments/REGISTER.md)."""
