@0xc1d5b2a90f3e7746; # refused: 7: echo.a: $deadlineMs is over 600000
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
interface Echo {
  a @0 () -> () $callers(["alpha"]) $deadlineMs(600001);
}
