@0xc1d5b2a90f3e7746; # refused: 5: echo.a: $callers names gamma, which is no organ of the manifest
using import "spine.capnp".callers;
using import "spine.capnp".event;
interface Echo {
  a @0 () -> () $callers(["gamma"]) $event;
}
