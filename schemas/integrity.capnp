@0xa4e07b91c35d2f68;
# Integrity: which copy of the system runs, and whether it is the one that was built.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".idempotent;

struct Checked @0xd1b7c94e26f3a08d {
  # What reading a slot or the ESP at this boot came to.

  name @0 :Text;
  # `slot-a`, `slot-b` or `esp`.

  verdict @1 :Text;
  # `pending` (not read to its end yet), `verified`, `tampered` (not what was signed), `unsigned` (nothing
  # there that the release key signed) or `unreadable`.

  detail @2 :Text;
  # A sentence about the verdict; empty where there is nothing to add.

  differs @3 :List(Text);
  # The parts of the slot, or the files of the ESP, that are not as they were signed; the first sixteen.

  how @4 :Text;
  # How it was read: `direct` (past the page cache), `dropped` (the cached pages were forgotten before each
  # read), or empty while it was not.
}

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

  slots @0 () -> (active :Text, rootHash :Text, verified :Bool, entries :List(Entry),
      checked :List(Checked))
    $callers(["operator"]) $deadlineMs(5000) $idempotent;
  # What reading both slots and the ESP came to (`checked`, the slots first). The slot that runs (`a`, `b`, or
  # empty where there are none), the root hash it was started with, whether the
  # kernel verifies every read against it, and the boot entries.
}
