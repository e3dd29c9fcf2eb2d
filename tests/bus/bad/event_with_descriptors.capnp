@0xc1d5b2a90f3e7746; # refused: 6: echo.a: an event has $callers and no other property of a method
using import "spine.capnp".callers;
using import "spine.capnp".fd;
using import "spine.capnp".event;
interface Echo {
  a @0 () -> () $callers(["alpha"]) $fd $event;
}
