@0xc1d5b2a90f3e7746; # refused: 7: echo.a: $callers is missing or empty
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
interface Echo {
  a @0 () -> () $callers([]) $deadlineMs(1);
}
