@0xc1d5b2a90f3e7746; # refused: 8: Not defined: Txet
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
interface Echo {

  a @0 (text :Txet) -> () $callers(["alpha"]) $deadlineMs(1);
}
