"""Speed and size, measured into JSON."""
