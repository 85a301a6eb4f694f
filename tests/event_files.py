"""TensorBoard's event files, read back."""

from __future__ import annotations

from pathlib import Path


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Read the one event file under a folder: name to values by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }
