@0xc1d5b2a90f3e7746; # refused: 8: echo.a.pair.both: a group is not spoken by the bus
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
struct Pair { both :group { one @0 :Text; two @1 :Text; } }
interface Echo {
  a @0 (pair :Pair) -> () $callers(["alpha"]) $deadlineMs(1);
}
