@0xc1d5b2a90f3e7746; # refused: 6: 'callers' cannot be applied to this kind of declaration.
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
struct S $callers(["alpha"]) {
}
