"""From a configuration to a trained, recorded run."""
