"""Gives dataclasses the code that it would compile, compiled when the image was built.

dataclasses writes the methods of each class as text and compiles them whenever a program starts: a quarter of
what the imports of the zygote took. The builder (`spine-image/spine/image/root.py`) imports what a program
imports, in this interpreter, and keeps for each text its code and how often it is asked for. A text that is
not in the table is compiled as ever, so the table changes nothing but time.

Touches: the name `exec` in dataclasses; a file of the verified root. Python's site imports this at each
start.
Never: runs code that dataclasses did not ask for by its text.
Fails: it does not; without a table everything is compiled as ever.
"""

# No future statement here: what exec compiles would inherit it.
import builtins
import dataclasses
import marshal
import sys

TABLES = "/usr/lib/spine/compiled"
ZYGOTE = "organs.bay0.zygote"


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


take(f"{TABLES}/{'zygote' if ZYGOTE in sys.orig_argv else 'bay0'}")
