@0xe05b8d3f7a16c294;
# The operator: what the person at ./spine may ask of a development image. A production image has none.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".disruptive;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
using import "spine.capnp".secret;

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

  exec @5 (persona :Text, argv :List(Text)) -> (session :UInt64)
    $callers(["host"]) $deadlineMs(30000);
  # Starts a program in the room that has the focus; the number of the session in which it is fed and drained.
  # FROZEN when the room has not the focus, FULL when there are as many sessions as may be.

  feed @6 (session :UInt64, data :Data $secret, end :Bool) -> (taken :UInt32)
    $callers(["host"]) $deadlineMs(5000);
  # Gives to the program's input as many of the bytes as it takes now. With `end`, and when all were taken, that
  # was the last of it. NOT_FOUND when there is no such session any more.

  drain @7 (session :UInt64, waitMs :UInt32) -> (output :Data $secret, error :Data $secret, ended :Text)
    $callers(["host"]) $deadlineMs(10000);
  # What the program wrote since the last time, after `waitMs` at the latest. `ended` is empty while it runs and
  # while there is more; then `exit N`, `signal N` or `unknown`, and the session is over.

  hangUp @8 (session :UInt64) -> ()
    $callers(["host"]) $deadlineMs(5000) $idempotent;
  # Ends the session, and with it the program. Nothing happens when there is no such session any more.
}
