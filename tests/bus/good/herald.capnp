@0xd6f0381c7ab94e25;
# A callee for tests that tells news.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".event;
using import "spine.capnp".secret;

interface Herald @0x8c5ae2d7b31f0946 {
  # Keeps a table and tells what changes in it.

  poke @0 (key :UInt32, value :Text) -> ()
    $callers(["alpha"]) $deadlineMs(60000);
  # Sets an entry.

  changed @1 (key :UInt32, value :Text, password :Data $secret) -> ()
    $event $callers(["alpha", "beta"]);
  # An entry was set.

  privy @2 (key :UInt32) -> ()
    $event $callers(["beta"]);
  # Not for alpha.
}
