@0xe05b8d3f7a16c294;
# The operator: what the person at ./spine may ask of a development image. A production image has none.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".disruptive;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;

interface Operator @0xdb90e6a4257f1c83 $hostPort {
  # Answers for the system as a whole. Everything else the host calls is passed on to the organ it names.

  status @0 () -> (json :Text)
    $callers(["host"]) $deadlineMs(5000) $idempotent;
  # The boot, the organs with their generations and deaths, and the memory they take, as JSON.

  log @1 (organ :Text, bytes :UInt32) -> (text :Data)
    $callers(["host"]) $deadlineMs(5000) $idempotent;
  # The last `bytes` bytes of the organ's log.

  probe @2 (name :Text, organ :Text, signal :UInt8) -> (json :Text)
    $callers(["host"]) $deadlineMs(15000) $disruptive;
  # Runs one of the named probes of the development image; the answer is JSON.

  power @3 (action :Text) -> ()
    $callers(["host"]) $deadlineMs(5000) $disruptive;
  # `reboot` or `poweroff`. The answer says that it was asked, not that it happened.

  tap @4 () -> ()
    $callers(["host"]) $deadlineMs(5000) $idempotent;
  # From the answer on, every message that an organ sends or receives is shown to this client, its secrets left
  # out, until it goes. What a slow client misses is seen by the holes in the records' numbers.
}
