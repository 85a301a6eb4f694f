"""The parts of a PEFT adapter folder: its weights file, its configuration, its modules."""
