@0xa4e07b91c35d2f68;
# Integrity: which copy of the system runs, and whether it is the one that was built.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".idempotent;

struct Entry @0xc6e2d4f18b3a5097 {
  # One boot entry as the boot loader counts it.

  name @0 :Text;
  # File name of the entry without its counter.

  left @1 :UInt8;
  # Tries that are left before the loader prefers another entry.

  done @2 :UInt8;
  # Tries that were made and not yet confirmed.
}

interface Integrity @0x8f47a3d2c91be056 {
  # Reads the slots and the boot entries; confirms a healthy boot.

  slots @0 () -> (active :Text, rootHash :Text, verified :Bool, entries :List(Entry))
    $callers(["operator"]) $deadlineMs(5000) $idempotent;
  # The slot that runs (`a`, `b`, or empty where there are none), the root hash it was started with, whether the
  # kernel verifies every read against it, and the boot entries.
}
