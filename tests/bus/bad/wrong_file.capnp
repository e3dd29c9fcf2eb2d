@0xc1d5b2a90f3e7746; # refused: 6: alpha: the interface of alpha belongs in alpha.capnp
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
interface Alpha {
  a @0 () -> () $callers(["beta"]) $deadlineMs(1);
}
