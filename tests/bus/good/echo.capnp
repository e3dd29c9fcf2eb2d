@0xc1d5b2a90f3e7746;
# A callee for tests: every kind of value, every kind of method.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".idempotent;
using import "spine.capnp".secret;

enum Colour { red @0; green @1; blue @2; }

struct Leaf {
  # A leaf.
  name @0 :Text;
  # Its name.
  colour @1 :Colour;
  weights @2 :List(Float32);
  which @3 :Bool;
  # A name that capnp's own objects use for something else.
}

interface Echo {
  # Answers with what it was asked.

  values @0 (nothing :Void, flag :Bool, small :Int8, short :Int16, int :Int32, long :Int64,
             byte :UInt8, word :UInt16, dword :UInt32, qword :UInt64, single :Float32, double :Float64,
             text :Text, data :Data $secret, colour :Colour, leaf :Leaf, leaves :List(Leaf),
             flags :List(Bool), texts :List(Text), datas :List(Data), deep :List(List(UInt16)), grove :List(List(Leaf)))
    -> (nothing :Void, flag :Bool, small :Int8, short :Int16, int :Int32, long :Int64,
        byte :UInt8, word :UInt16, dword :UInt32, qword :UInt64, single :Float32, double :Float64,
        text :Text, data :Data, colour :Colour, leaf :Leaf, leaves :List(Leaf),
        flags :List(Bool), texts :List(Text), datas :List(Data), deep :List(List(UInt16)), grove :List(List(Leaf)))
    $callers(["alpha", "beta"]) $deadlineMs(60000) $idempotent;
  # Everything that the bus can carry.

  data @1 (data :Data) -> (data :Data)
    $callers(["alpha", "beta"]) $deadlineMs(60000) $idempotent;
  # The same bytes.

  hold @2 (tag :UInt64) -> (generation :UInt64, attempt :UInt64)
    $callers(["alpha", "beta"]) $deadlineMs(60000) $idempotent;
  # Answered when it is let go.

  once @3 (tag :UInt64) -> (generation :UInt64, attempt :UInt64)
    $callers(["alpha", "beta"]) $deadlineMs(60000);
  # As hold, but not to be repeated.

  onlyBeta @4 () -> ()
    $callers(["beta"]) $deadlineMs(60000);
  # Not for alpha.

  refuse @5 (code :UInt16, text :Text) -> ()
    $callers(["alpha", "beta"]) $deadlineMs(60000);
  # Fails as told.

  grow @6 (bytes :UInt32) -> (data :Data)
    $callers(["alpha", "beta"]) $deadlineMs(60000) $idempotent;
  # That many bytes.
}
