"""What makes the programs of the image start sooner, and changes nothing else.

dataclasses writes the methods of each class as text and compiles them whenever a program starts: a quarter of
what the imports of the zygote took. The builder (`spine-image/spine/image/root.py`) imports what a program
imports, in this interpreter, and keeps for each text its code and how often it is asked for. A text that is
not in the table is compiled as ever. And garbage is not looked for while modules are imported, which make
none: that was a tenth.

Touches: the name `exec` in dataclasses; when the collector runs; a file of the verified root. Python's site
imports this at each start.
Never: runs code that dataclasses did not ask for by its text.
Fails: it does not; without a table everything is compiled as ever.
"""

# No future statement here: what exec compiles would inherit it.
import builtins
import dataclasses
import gc
import marshal
import sys

TABLES = "/usr/lib/spine/compiled"
ZYGOTE = "organs.bay0.zygote"
# More objects than all imports of the zygote make (some 67,000).
OBJECTS = 100_000


def take(path):
    """From now on, use the table in this file, until each text was asked for as often as at the build."""
    try:
        with open(path, "rb") as file:
            table = marshal.loads(file.read())
    except (OSError, EOFError, ValueError, TypeError):
        return

    def run(text, names, into):
        code, left = table.pop(text, (text, 0))
        if left > 1:
            table[text] = code, left - 1
        builtins.exec(code, names, into)

    dataclasses.exec = run


def wait():
    """Look for garbage once there are so many objects or a program asks for it, and from then on as ever."""
    usual = gc.get_threshold()

    def first(_phase, _info):
        gc.set_threshold(*usual)
        gc.callbacks.remove(first)

    gc.set_threshold(OBJECTS, *usual[1:])
    gc.callbacks.append(first)


take(f"{TABLES}/{'zygote' if ZYGOTE in sys.orig_argv else 'bay0'}")
wait()
