"""The two grounds the spine runs on: a QEMU machine, or fresh namespaces of this kernel."""
