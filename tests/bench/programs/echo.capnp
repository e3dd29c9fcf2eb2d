@0xb4a3d5c1e20f9871;
# The callee of the bench.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".idempotent;

interface Echo {
  # Answers with what it was asked.

  same @0 (data :Data) -> (data :Data)
    $callers(["alpha", "beta"]) $deadlineMs(60000) $idempotent;
  # The same bytes.
}
