@0xc1d5b2a90f3e7746; # refused: 6: echo.a: no event crosses the port to the host
using import "spine.capnp".callers;
using import "spine.capnp".event;
using import "spine.capnp".hostPort;
interface Echo $hostPort {
  a @0 () -> () $callers(["host"]) $event;
}
