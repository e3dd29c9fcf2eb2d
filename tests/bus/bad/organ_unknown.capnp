@0xc1d5b2a90f3e7746; # refused: 6: gamma: the manifest has no organ of that name
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
interface Gamma {
  a @0 () -> () $callers(["alpha"]) $deadlineMs(1);
}
