@0xc1d5b2a90f3e7746; # refused: 8: echo.b: $callers is missing or empty
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
interface Echo {
  a @0 () -> () $callers(["alpha"]) $deadlineMs(1);
  b @1 () -> () $deadlineMs(1);
}
