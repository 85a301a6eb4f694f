"""The methods as PEFT adapters, and the rank mask."""
