@0xc1d5b2a90f3e7746; # refused: 6: echo.a: an event has no results: nobody answers it
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".event;
interface Echo {
  a @0 () -> (b :Bool) $callers(["alpha"]) $event;
}
