"""Watching, recording and replaying what travels on the bus."""
