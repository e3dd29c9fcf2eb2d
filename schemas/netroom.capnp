@0xf3a8c1d26e4b7095;
# Netroom: where the machine's network interfaces are, and which room has the network. The spine has none of it.

using import "spine.capnp".callers;
using import "spine.capnp".deadlineMs;
using import "spine.capnp".event;
using import "spine.capnp".fd;
using import "spine.capnp".idempotent;

struct Link @0x9c2e57b0d1f4a683 {
  # One network interface of the machine.

  name @0 :Text;
  # Its name where it is. One whose name was taken in the parking is called `nic0`, `nic1`, ... there.

  mac @1 :Text;
  # Its hardware address as bytes in hexadecimal with colons, or empty where it has none.

  state @2 :Text;
  # `parked`: in the namespace that nobody is in, and down. `carrying`: there, and up, because a room is connected
  # through it. `fixed`: the kernel does not let it leave the spine's namespace, where it is down.
}

interface Netroom @0xb7d4e09a3c58f162 {
  # Keeps every interface in a namespace of its own, and gives the room that may have it a link above one of them.

  links @0 () -> (links :List(Link))
    $callers(["freezer", "operator"]) $deadlineMs(5000) $idempotent;
  # Every interface but loopback, as the kernel lists them now.

  connect @1 (room :Text, inbound :List(UInt16)) -> (address :Text, router :Text)
    $callers(["freezer"]) $deadlineMs(10000) $idempotent $fd;
  # Gives a room the network. With it come five descriptors of the room: its network namespace, a rtnetlink socket,
  # a netfilter socket, a UDP socket bound to port 68, all three made inside it, and its resolv.conf, to write.
  # By the UDP socket the network is asked for the time as well, which bay0 is told; see organs/netroom/clock.py.
  # `inbound` are the TCP ports that its filter opens. The filter is in place before the link is up.
  # `address` is the room's address with its prefix length and `router` the way out. Both are empty where there is
  # no interface, or no answer yet; netroom goes on trying while the room is connected. Asked again for the same
  # room it begins anew with what was handed over now.
  # INVALID for a name or ports that cannot be; FULL; REFUSED when the kernel refuses. The room is then cut.

  cut @2 (room :Text) -> ()
    $callers(["freezer"]) $deadlineMs(5000) $idempotent $fd;
  # Takes the network from a room. With it come its network namespace and a rtnetlink socket made inside it. When
  # this answers the room's link is down and without an address, and nothing more is sent for it.

  forget @3 (room :Text) -> ()
    $callers(["freezer"]) $deadlineMs(5000) $idempotent;
  # The room is gone: the address it had is not asked for again.

  connected @4 (room :Text, address :Text) -> ()
    $callers(["freezer"]) $event;
  # The room has the network, and this address with its prefix length, or none yet. A connected room that the
  # present state does not name lost its network with an earlier incarnation, and is to be connected again.
}
