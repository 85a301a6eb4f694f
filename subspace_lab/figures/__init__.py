"""The shared style and drawing helpers; figures read tables only."""
