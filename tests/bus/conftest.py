"""No test of the bus is about wall time: an example may take as long as a busy machine makes it."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("spine", deadline=None)
settings.load_profile("spine")
