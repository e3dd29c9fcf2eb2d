@0xc1d5b2a90f3e7746; # refused: 10: echo: an interface that extends another is not spoken by the bus
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
interface Base {
  a @0 () -> () $callers(["alpha"]) $deadlineMs(1);
}

interface Echo extends(Base) {
}
