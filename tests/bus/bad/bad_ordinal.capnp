@0xc1d5b2a90f3e7746; # refused: 8: Skipped ordinal @0.  Ordinals must be sequential with no holes.
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
interface Echo {

  a @1 () -> () $callers(["alpha"]) $deadlineMs(1);
}
