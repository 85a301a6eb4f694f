"""The small recorded run of `tests.recording`."""

from tests.recording.conftest import run as run
