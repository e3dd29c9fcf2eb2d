@0xc1d5b2a90f3e7746; # refused: 8: echo.a.tree.branches: a struct that contains itself is not spoken by the bus
using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".hostPort;
using import "spine.capnp".idempotent;
struct Tree { branches @0 :List(Tree); }
interface Echo {
  a @0 (tree :Tree) -> () $callers(["alpha"]) $deadlineMs(1);
}
