@0xc1d5b2a90f3e7746; # refused: 8: echo.a.box: a generic struct is not spoken by the bus
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
struct Box(T) { value @0 :T; }
interface Echo {
  a @0 (box :Box(Text)) -> () $callers(["alpha"]) $deadlineMs(1);
}
