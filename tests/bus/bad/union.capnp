@0xc1d5b2a90f3e7746; # refused: 8: echo.a.either: a union is not spoken by the bus
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
struct Either { union { one @0 :Text; two @1 :Text; } }
interface Echo {
  a @0 (either :Either) -> () $callers(["alpha"]) $deadlineMs(1);
}
