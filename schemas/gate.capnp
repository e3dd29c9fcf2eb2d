@0x9d1f5a2be8c34710;
# The gate: the only way to anything durable.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".idempotent;
using import "spine.capnp".secret;

struct Damaged @0xe4a17c5d90b2f683 {
  # A store that is not what was written there.

  store @0 :Text;
  # The name that it was asked for by.

  why @1 :Text;
  # What was seen.
}

interface Gate @0xb2c94e17f06d8a35 {
  # Keeps the state of personas: small records under a key, one store per persona.

  put @0 (persona :Text, key :Data, value :Data $secret) -> (seq :UInt64)
    $callers(["operator", "umbilical"]) $deadlineMs(10000);
  # Stores the value under the key. The answer comes after the record is on stable storage; `seq` grows with
  # each record of the persona.

  get @1 (persona :Text, key :Data) -> (value :Data $secret, seq :UInt64)
    $callers(["operator", "umbilical"]) $deadlineMs(5000) $idempotent;
  # The value under the key, and the sequence number it was stored with. NOT_FOUND when there is none.

  delete @2 (persona :Text, key :Data) -> (existed :Bool)
    $callers(["operator", "umbilical"]) $deadlineMs(10000);
  # Removes the key durably. Never refused for want of room or quota.

  list @3 (persona :Text, after :Data, limit :UInt32) -> (keys :List(Data), more :Bool)
    $callers(["operator", "umbilical"]) $deadlineMs(5000) $idempotent;
  # Keys in byte order, those greater than `after` (empty: from the first), at most `limit` of them. `more` says
  # whether others follow; ask again with the last key.

  usage @4 (persona :Text) -> (bytes :UInt64, keys :UInt64, quotaBytes :UInt64)
    $callers(["operator", "umbilical"]) $deadlineMs(5000) $idempotent;
  # What the persona's records take, and what they may take.

  data @5 () -> (closed :Text, damaged :List(Damaged))
    $callers(["operator"]) $deadlineMs(5000) $idempotent;
  # Whether the data are well. `closed`: why all of them are out of service until the next boot, and every other call
  # is answered with CORRUPT; empty when they are served. `damaged`: the stores that were found so since the gate started.
}
