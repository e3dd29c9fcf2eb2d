@0xc1d5b2a90f3e7746; # refused: 3: Import failed: nowhere.capnp

using import "nowhere.capnp".callers;
interface Echo {}
