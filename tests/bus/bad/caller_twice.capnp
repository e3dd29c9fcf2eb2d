@0xc1d5b2a90f3e7746; # refused: 7: echo.a: $callers names a caller twice
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
interface Echo {
  a @0 () -> () $callers(["alpha", "alpha"]) $deadlineMs(1);
}
