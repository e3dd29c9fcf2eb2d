@0xc1d5b2a90f3e7746; # refused: 7: echo.a.it: a value of type anyPointer is not spoken by the bus
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
interface Echo {
  a @0 (it :AnyPointer) -> () $callers(["alpha"]) $deadlineMs(1);
}
