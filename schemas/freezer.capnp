@0xc8e1b5a07d3f4926;
# Freezer: which rooms there are, and which one of them runs.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".event;
using import "spine.capnp".fd;
using import "spine.capnp".gives;
using import "spine.capnp".idempotent;
using import "spine.capnp".secret;

struct Room @0xd35a9c07e1f8b264 {
  # One room as the freezer knows it.

  name @0 :Text;
  # The name of the persona in it.

  state @1 :Text;
  # `building`, `frozen`, `thawing`, `running`, `freezing`, `dying`, or `stuck`. Only `frozen` and `running` are
  # confirmed by the kernel; the others say what was asked for.

  cpuUsec @2 :UInt64;
  # Processor time that the room has used since it was made, in microseconds, as the kernel counts it.

  blocker @3 :Text;
  # What last kept the room from freezing or ending: process id and what it waits for. Empty when nothing did.

  version @4 :UInt32;
  # The version of the persona's image.

  store @5 :Text;
  # Under what name the gate keeps the persona's state: its own name and the id of the key that signed it.

  network @6 :Text;
  # What the room has of a network: `none`, `cut`, or `connected` with the address it got, if it got one yet.
}

struct Line @0xa41f6d82c50e93b7 {
  # What the umbilical may do with one room.

  room @0 :Text;
  # The name of the persona in the room.

  epoch @1 :UInt64;
  # The number of the hushing, to be repeated in `hushed`; 0 while none is asked for.

  open @2 :Bool;
  # The room runs and may be served. Else nothing may be sent to it.

  gapNs @3 :UInt64;
  # How long the room stood still before it ran again, in nanoseconds; 0 when it has not, or is not known.

  cgroup @4 :UInt64;
  # The number of the room's cgroup, which no other room had since the boot. A room by the same name with another
  # number is another room.
}

interface Freezer @0x95d7c20e4ab8f613 {
  # Keeps exactly one room awake, the one that has the focus; every other is frozen by the kernel.

  rooms @0 () -> (rooms :List(Room), focus :Text)
    $callers(["operator"]) $deadlineMs(5000) $idempotent;
  # All rooms, and the one that has the focus (empty: none has).

  focus @1 (persona :Text) -> ()
    $callers(["operator"]) $deadlineMs(30000);
  # Gives the focus to a room and answers when the kernel says that it runs and every other is frozen; waits for a
  # hand-over that is under way. NOT_FOUND when there is no such room, BUSY while it is being made or is ending,
  # REFUSED with the reason when the focus went back.

  requestFocus @2 (room :Text, persona :Text) -> ()
    $callers(["umbilical"]) $deadlineMs(5000);
  # The same wish by a room that has the focus. The answer says that the hand-over has begun: the room that asks
  # will be frozen before it ends. FORBIDDEN for a room without the focus, THROTTLED when it moved a moment ago.

  hushed @3 (room :Text, epoch :UInt64) -> ()
    $callers(["umbilical"]) $deadlineMs(1000) $idempotent;
  # The umbilical has come to rest with the room, as it was asked to under this number.

  line @4 (line :Line) -> ()
    $callers(["umbilical"]) $event;
  # What may be done with a room from now on. Until it is told the first time, nothing may.

  start @5 (persona :Text) -> ()
    $callers(["operator"]) $deadlineMs(60000);
  # Makes a room for an installed persona; answered when it is there, frozen. NOT_FOUND when it is not installed,
  # CORRUPT when its image is not what was signed, BUSY when it has a room, FULL when there are as many as may be.

  stop @6 (persona :Text) -> ()
    $callers(["operator"]) $deadlineMs(30000);
  # Ends every process of the room; answered when the kernel says that none is left.

  exec @7 (persona :Text, argv :List(Text)) -> (pid :UInt32)
    $callers(["operator"]) $deadlineMs(20000) $fd;
  # Starts a program in the room that has the focus. Beside the call come its input, output and error streams, and
  # a pipe to which `exit N` or `signal N` is written when it has ended. FROZEN when the room has not the focus.

  console @8 (persona :Text, after :UInt64, waitMs :UInt32) -> (data :Data $secret, next :UInt64)
    $callers(["operator"]) $deadlineMs(10000) $idempotent;
  # What the room wrote to its console from byte `after` on, or from the oldest that is kept; with nothing new it
  # is answered after `waitMs`, five seconds at most. `next` is the byte to ask for next. Bytes are not counted from
  # 0: those of a later console, of another room or of a freezer that was restarted, come after all earlier ones
  # of the same boot.

  type @9 (persona :Text, data :Data $secret) -> (taken :UInt32)
    $callers(["operator"]) $deadlineMs(5000);
  # Types into the room's console, as far as it takes it. FROZEN when the room has not the focus.

  takeListener @10 (room :Text, cgroup :UInt64) -> (store :Text, uidBase :UInt32, uidCount :UInt32, mayUpdate :Bool)
    $callers(["umbilical"]) $deadlineMs(5000) $idempotent $gives;
  # The listening socket of the room with this number, who may speak on it: these user ids, and whether its persona
  # was granted to bring updates of the system.

  gone @11 (room :Text) -> ()
    $callers(["umbilical"]) $event;
  # The room is no more.
}
