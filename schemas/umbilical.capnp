@0xb90f4e27c1d6a385;
# Umbilical: what a persona in its room says to the spine, and the organ that listens.
#
# In the room there is a stream socket, /run/umbilical. What travels on it is standard Cap'n Proto stream framing
# (segment count, segment sizes, segments), one `Request` or `Response` for each message, so that any language can
# speak it. Who speaks is known by the socket: no message carries a name of its sender.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".idempotent;
using import "spine.capnp".secret;

enum Verb @0xe0a3b5d7419c8f26 {
  # What a persona may ask for.

  put @0;
  # Store `value` under `key`. Answered when it is on stable storage.

  get @1;
  # The `value` under `key`.

  delete @2;
  # Remove `key`.

  list @3;
  # At most `limit` keys greater than `key`, in byte order.

  status @4;
  # Who the room is to the spine, and what it has stored.

  focus @5;
  # Pass the focus to `persona`. The answer says that the hand-over has begun.

  beginUpdate @6;
  # Bring a new version of the system: `value` is the manifest block of its slot, `bytes` the length of the slot.
  # REFUSED for a persona without the grant `update`, as all the verbs of an update are.

  updateChunk @7;
  # A piece of it: `value` at `offset`.

  commitUpdate @8;
  # All pieces are there: examine it, write it, and with `reboot` start it.
}

enum Code @0xf61d820c9be5a347 {
  # How a request ended. The numbers are those of the bus.

  ok @0;
  badMessage @1;
  unknownMethod @2;
  forbidden @3;
  deadline @4;
  stale @5;
  tooLarge @6;
  busy @7;
  peerDied @8;
  internal @9;
  invalid @10;
  notFound @11;
  refused @12;
  quota @13;
  full @14;
  throttled @15;
  corrupt @16;
  unknown @17;
  frozen @18;
}

struct Request @0x8ad64f0b92e7c135 {
  # One wish. Fields that the verb does not name are left out.

  id @0 :UInt64;
  # Chosen by the persona and repeated in the response. Responses may come in another order than requests.

  verb @1 :Verb;
  # What is asked for.

  key @2 :Data;
  # The key, of 1 to 1024 bytes; for `list`: the key after which to begin, or empty.

  value @3 :Data $secret;
  # The value to store, of at most a mebibyte.

  limit @4 :UInt32;
  # How many keys `list` may answer with.

  persona @5 :Text;
  # Who is to have the focus.

  ticket @6 :UInt64;
  # Of an update: what `beginUpdate` answered.

  bytes @7 :UInt64;
  # Of `beginUpdate`: how long the slot is.

  offset @8 :UInt64;
  # Of `updateChunk`: where the piece belongs, from the start of the slot.

  reboot @9 :Bool;
  # Of `commitUpdate`: start the machine anew afterwards.
}

struct Response @0xa7c5e91f3d08b264 {
  # The end of one request; or, with `thawed`, news that nobody asked for.

  id @0 :UInt64;
  # The request's.

  code @1 :Code;
  # `ok`, or why not. After `frozen`, `peerDied` and `deadline` it is not known whether it was done.

  message @2 :Text;
  # For a person, when the code is not `ok`.

  value @3 :Data $secret;
  # Of `get`.

  seq @4 :UInt64;
  # Of `put` and `get`: the number of the record, which grows with each record of the persona.

  existed @5 :Bool;
  # Of `delete`: whether there was something to remove.

  keys @6 :List(Data);
  # Of `list`.

  more @7 :Bool;
  # Of `list`: whether other keys follow.

  persona @8 :Text;
  # Of `status`: the name under which the spine knows this room.

  usedBytes @9 :UInt64;
  # Of `status`: what the persona's records take.

  quotaBytes @10 :UInt64;
  # Of `status`: what they may take.

  thawed @11 :Bool;
  # This is news: the room stood still and runs again. Timers that should have ended meanwhile end now.

  gapNs @12 :UInt64;
  # With `thawed`: for how long, in nanoseconds; 0 when it is not known.

  ticket @13 :UInt64;
  # Of `beginUpdate`: the number to repeat in the pieces that follow.

  slot @14 :Text;
  # Of `commitUpdate`: the letter of the slot that was written.

  version @15 :Text;
  # Of `commitUpdate`: the version that lies there now.
}

struct Link @0xcb1709e4f62d8a53 {
  # The traffic of one room.

  room @0 :Text;
  # The name of the persona in it.

  connections @1 :UInt32;
  # Open now.

  requests @2 :UInt64;
  # Received since the room's listener was handed over.

  frozen @3 :UInt64;
  # Requests that were answered with `frozen`.

  strangers @4 :UInt64;
  # Connections that were closed because the kernel did not say that they came from this room.

  refused @5 :UInt64;
  # Connections that were closed because of what they sent, or because there were too many.
}

interface Umbilical @0xd40c6b8e15f7932a {
  # Carries the wishes of personas to the organs that can grant them.

  links @0 () -> (links :List(Link))
    $callers(["operator"]) $deadlineMs(5000) $idempotent;
  # Every room that has a listener, by name.
}
