@0xf3a8c1d26e4b7095;
# Netroom: where the machine's network interfaces are. The spine has none of them.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".idempotent;

struct Link @0x9c2e57b0d1f4a683 {
  # One network interface of the machine.

  name @0 :Text;
  # Its name where it is. One whose name was taken in the parking is called `nic0`, `nic1`, ... there.

  mac @1 :Text;
  # Its hardware address as bytes in hexadecimal with colons, or empty where it has none.

  state @2 :Text;
  # `parked`: in the namespace that nobody is in, and down. `fixed`: the kernel does not let it leave the spine's
  # namespace, where it is down.
}

interface Netroom @0xb7d4e09a3c58f162 {
  # Keeps every interface in a namespace of its own.

  links @0 () -> (links :List(Link))
    $callers(["freezer", "operator"]) $deadlineMs(5000) $idempotent;
  # Every interface but loopback, as the kernel lists them now.
}
