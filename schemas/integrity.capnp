@0xa4e07b91c35d2f68;
# Integrity: which copy of the system runs, and whether it is the one that was built.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".gives;
using import "spine.capnp".idempotent;

struct Checked @0xd1b7c94e26f3a08d {
  # What reading a slot or a boot volume at this boot came to.

  name @0 :Text;
  # `slot-a`, `slot-b`, `boot-a` or `boot-b`.

  verdict @1 :Text;
  # `pending` (not read to its end yet), `verified`, `tampered` (not what was signed), `unsigned` (nothing
  # there that the release key signed) or `unreadable`.

  detail @2 :Text;
  # A sentence about the verdict; empty where there is nothing to add.

  differs @3 :List(Text);
  # The parts of the slot, or the files of the boot volume, that are not as they were signed; the first sixteen.

  how @4 :Text;
  # How it was read: `direct` (past the page cache), `dropped` (the cached pages were forgotten before each
  # read), or empty while it was not.
}

struct Entry @0xc6e2d4f18b3a5097 {
  # One boot entry as the boot loader counts it.

  name @0 :Text;
  # File name of the entry without its counter.

  left @1 :UInt8;
  # Tries that are left before the loader prefers another entry.

  done @2 :UInt8;
  # Tries that were made and not yet confirmed.
}

struct Persona @0xb1f60c8e47d92a35 {
  # A persona that is installed.

  name @0 :Text;

  version @1 :UInt32;

  keyId @2 :Text;
  # The key that it is signed with: the first 16 digits of the key's SHA-256. A persona of the same name with another
  # key is another persona.

  offset @3 :UInt64;
  # Where its image begins in the partition, in bytes.

  length @4 :UInt64;

  manifest @5 :Data;
  # The text that was signed, as JSON. Empty in a list when what is on the device is not what was installed.
}

interface Integrity @0x8f47a3d2c91be056 {
  # Reads the slots and the boot entries; confirms a healthy boot.

  slots @0 () -> (active :Text, rootHash :Text, verified :Bool, entries :List(Entry),
      checked :List(Checked), standing :Text, blessed :Bool, lost :Bool, update :Text, replacing :Text,
      writtenBytes :UInt64, totalBytes :UInt64, report :Text)
    $callers(["operator"]) $deadlineMs(5000) $idempotent;
  # What reading both slots and their boot volumes came to (`checked`, the slots first). The slot that runs (`a`,
  # `b`, or empty where there are none), the root hash it was started with, whether the kernel verifies every read
  # against it, and the boot entries of both volumes.
  #
  # Where things stand is `standing`: `waiting` (the boot is not healthy yet), `reading`, `working` (something is put
  # right), `blessed` (both pairs of slot and boot volume are verified, hold the same release and have all tries; then
  # `blessed` is true), `update` (the pair that does not run holds a newer release that was not started yet),
  # `irreplaceable` (a pair is not as it should be and cannot be written), `lost` (there is no verified slot to go on
  # with; then `lost` is true), `leaving` (a restart was asked for) or `none` (there are no slots here). `update` says
  # what the other pair is to the one that runs: `none`, `pending` or `failed` (all its tries were used up).
  # `replacing` is the device that is being written, `writtenBytes` of `totalBytes` are; it is empty while none is.
  # `report` is the last thing that was done, or could not be done and why.

  personas @1 () -> (personas :List(Persona))
    $callers(["operator", "freezer"]) $deadlineMs(5000) $idempotent;
  # All personas that are installed.

  open @2 (name :Text) -> (persona :Persona)
    $callers(["freezer"]) $deadlineMs(5000) $idempotent $gives;
  # The persona of that name, its signature checked again, and a descriptor of the partition that is open for reading
  # only. NOT_FOUND when it is not installed, CORRUPT when its manifest is not the one that was installed, REFUSED when
  # its key is not trusted any more. Its image stays where it is until the organ starts again, also when the persona is
  # removed or gets a new version meanwhile.

  beginInstall @3 (bytes :UInt64) -> (ticket :UInt64)
    $callers(["operator"]) $deadlineMs(5000);
  # Set space aside for an image of that length. An install that the caller began before ends with this.

  chunk @4 (ticket :UInt64, offset :UInt64, data :Data) -> ()
    $callers(["operator"]) $deadlineMs(10000) $idempotent;
  # A piece of the image, at most 512 KiB; behind the ones before, or over them.

  commit @5 (ticket :UInt64) -> (persona :Persona)
    $callers(["operator"]) $deadlineMs(120000);
  # All pieces are there: check the image, from the device, and install it in the place of an earlier version. REFUSED
  # when it does not belong here; the message begins with the kind of refusal, which is one of `unsigned:`,
  # `truncated:`, `altered:`, `foreign key:`, `downgrade:`, `malformed:`, `other identity:`, `full:`.

  abandon @6 (ticket :UInt64) -> ()
    $callers(["operator"]) $deadlineMs(5000);
  # End an install that was begun.

  remove @7 (name :Text) -> ()
    $callers(["operator"]) $deadlineMs(5000);
  # Take a persona off the partition. What its version was stays known, so that no earlier one can come back.

  beginUpdate @8 (manifest :Data, bytes :UInt64) -> (ticket :UInt64)
    $callers(["operator", "umbilical"]) $deadlineMs(10000);
  # Take in a new version of the system: `manifest` is the block that its slot carries, `bytes` how long the slot is
  # without the zeros at its end. REFUSED before a byte of it is taken when the release key did not sign it, when it is
  # not newer than what runs, when it is an image of another kind, or too large; the message begins with the kind of
  # refusal, which is one of `unsigned:`, `malformed:`, `too large:`, `truncated:`, `other image:`, `downgrade:`,
  # `altered:`. FULL while an update of another caller is under way; one that the same caller began ends with this.

  updateChunk @9 (ticket :UInt64, offset :UInt64, data :Data) -> ()
    $callers(["operator", "umbilical"]) $deadlineMs(10000) $idempotent;
  # A piece of the slot, at most 512 KiB; behind the ones before, or over them. It is kept in memory.

  commitUpdate @10 (ticket :UInt64, reboot :Bool) -> (slot :Text, version :Text)
    $callers(["operator", "umbilical"]) $deadlineMs(300000);
  # All pieces are there: examine the whole of it in memory, then write it in the place of the slot that does not run,
  # and give it tries. `slot` is the letter of that slot. REFUSED, as with `beginUpdate`, before anything is written;
  # CORRUPT when the device did not take it: that slot then has no tries. With `reboot` the machine starts anew a
  # moment after the answer.

  abandonUpdate @11 (ticket :UInt64) -> ()
    $callers(["operator"]) $deadlineMs(5000);
  # End an update that was begun. One of which nothing is heard for some minutes ends by itself.
}
