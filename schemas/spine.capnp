@0xf3b1c27ad59e4c01;
# The words every interface of the spine is described with.
#
# The schemas are the wiring plan: from these annotations the build derives which sockets exist, who may call
# what, how long a call may take, and what is left out of recordings. Nothing else says so a second time.

annotation callers @0xd8a6f0c3b1e27401 (method) :List(Text);
# Names of the organs that may call this method. A pair (interface, caller) that no method names gets no socket.
# The name `host` stands for the person at ./spine; see `hostPort`.

annotation deadlineMs @0xd8a6f0c3b1e27402 (method) :UInt32;
# The longest a call of this method may take, in milliseconds, from asking to answer. A caller may ask for less.

annotation idempotent @0xd8a6f0c3b1e27403 (method) :Void;
# Running the method twice is the same as running it once, whatever other callers do in between. Only such a
# call is sent again by itself when its callee dies. (A put is not: A, then B by another, then A again loses B.)

annotation fd @0xd8a6f0c3b1e27404 (method) :Void;
# One to eight file descriptors accompany the call; they cross beside the bus, never on it.

annotation gives @0xd8a6f0c3b1e27408 (method) :Void;
# One to eight file descriptors accompany the answer; they cross beside the bus as well.

annotation event @0xd8a6f0c3b1e27409 (method) :Void;
# No method but news: what the organ tells, unasked, those that `callers` names, on their own connections. It has
# parameters and nothing else: no results, no deadline, no answer.

annotation secret @0xd8a6f0c3b1e27405 (field, param) :Void;
# The value belongs to a persona: recordings keep its length and nothing else.

annotation disruptive @0xd8a6f0c3b1e27407 (method) :Void;
# A call of the method may end a process or the system, as its parameters say. Tests that are made from the schemas
# call such a method with bodies that are refused, and never with parameters that fit.

annotation hostPort @0xd8a6f0c3b1e27406 (interface) :Void;
# This interface is the one that the person at ./spine reaches. At most one interface carries it, and only its
# methods may name `host` as a caller.
