"""Being in a room from the host: running a program in it, sitting at its console."""
