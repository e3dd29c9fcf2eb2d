"""Builds the image: kernel, root, slots and disk, from inputs that are pinned by version and hash."""
