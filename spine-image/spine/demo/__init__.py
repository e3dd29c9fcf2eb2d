"""The demo: what is claimed, shown by running the commands that a person would type."""
