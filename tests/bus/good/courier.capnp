@0xa90d3c5be1724f68;
# A callee for tests whose methods carry descriptors.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".fd;
using import "spine.capnp".gives;
using import "spine.capnp".idempotent;
using import "spine.capnp".secret;

interface Courier @0xe4b1f07c2d9583a6 {
  # Takes descriptors and gives some.

  read @0 (tag :UInt64, word :Text $secret) -> (texts :List(Text))
    $callers(["alpha"]) $deadlineMs(60000) $fd;
  # What each of the files begins with.

  readAgain @1 (tag :UInt64) -> (texts :List(Text))
    $callers(["alpha"]) $deadlineMs(60000) $fd $idempotent;
  # The same, and may be repeated.

  open @2 (texts :List(Text)) -> (number :UInt32)
    $callers(["alpha"]) $deadlineMs(60000) $gives $idempotent;
  # A file for each text.

  swap @3 (tag :UInt64) -> (tag :UInt64)
    $callers(["alpha"]) $deadlineMs(60000) $fd $gives $idempotent;
  # The same files back, in the opposite order.

  plain @4 (tag :UInt64) -> (tag :UInt64)
    $callers(["alpha", "beta"]) $deadlineMs(60000) $idempotent;
  # The same number.
}
