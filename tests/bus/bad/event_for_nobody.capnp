@0xc1d5b2a90f3e7746; # refused: 4: echo.a: $callers is missing or empty
using import "spine.capnp".event;
interface Echo {
  a @0 () -> () $event;
}
