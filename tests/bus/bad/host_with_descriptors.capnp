# refused: 8: echo.a: no descriptor crosses the port to the host, so $fd and $gives exclude it
@0xc1d5b2a90f3e7701;
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".gives;
using import "spine.capnp".hostPort;
interface Echo $hostPort {
  a @0 () -> () $callers(["host"]) $deadlineMs(5) $gives;
}
