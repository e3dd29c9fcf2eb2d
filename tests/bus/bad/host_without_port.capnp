@0xc1d5b2a90f3e7746; # refused: 7: echo.a: only an interface with $hostPort may have the caller host
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
interface Echo {
  a @0 () -> () $callers(["host"]) $deadlineMs(1);
}
