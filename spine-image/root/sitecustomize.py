"""What makes the programs of the image start sooner, and changes nothing else.

The builder (`spine-image/spine/image/root.py`) imports what a program imports, in this interpreter, and keeps
in tables what is the same at each start: the bytecode of all modules in one piece, in place of five hundred
small files that are looked for along a path; the code of the methods that dataclasses and attrs write as
text; and what regular expressions mean. What is not in a table is found, compiled and parsed as ever; most
modules are in no other place. And garbage is not looked for while modules are imported, which make none.

Touches: the finders of modules; the names `exec` in dataclasses, `compile` and `hash` in attrs, `compile` in
re; when the collector runs; files of the verified root. Python's site imports this at each start.
Never: runs code that is not what the same module, text or pattern would have become,
but for one number in each hash of attrs.
Fails: it does not; a program without its tables finds few modules, and ends.
"""

# No future statement here: what exec compiles would inherit it. Nor an import of what is in the tables.
import _sre
import builtins
import gc
import marshal
import sys
import zlib
from _frozen_importlib import ModuleSpec

TABLES = "/usr/lib/spine/compiled"
ZYGOTE = "organs.bay0.zygote"
# More objects than all imports of the zygote make (some 67,000).
OBJECTS = 100_000


class Modules:
    """Finds the modules of a table, and is the loader of each."""

    def __init__(self, table, before, after):
        """`before` has names that a module is given before it runs, `after` what is done once it has run."""
        self.table = table
        self._before = before
        self.after = after

    def find_spec(self, name, _path=None, _target=None):
        if name not in self.table:
            return None
        place, package, _code = self.table[name]
        spec = ModuleSpec(name, self, origin=place, is_package=package)
        if package:
            spec.submodule_search_locations.append(place.rpartition("/")[0])
        spec.has_location = True
        spec.cached = place
        return spec

    def create_module(self, _spec):
        return None

    def exec_module(self, module):
        name = module.__name__
        module.__dict__.update(self._before.get(name, {}))
        exec(self.get_code(name), module.__dict__)
        if name in self.after:
            self.after[name](module)

    def get_code(self, name):
        """Given away once: nothing here imports a module twice."""
        return marshal.loads(self.table.pop(name)[2])

    def get_source(self, _name):
        """What a traceback asks for when there is no file."""
        return None


def number(text):
    """What attrs writes into the hash of a class to tell it from others: here the same at each start."""
    return zlib.crc32(text.encode())


def used(table, key):
    """What the table has for this, as often as it was asked for at the build."""
    found, left = table.pop(key)
    if left > 1:
        table[key] = found, left - 1
    return found


def take(*paths):
    """From now on, use the tables in these files. What is left of them, by kind; None without them."""
    tables = {"modules": {}, "texts": {}, "scripts": {}, "patterns": {}}
    try:
        for path in paths:
            with open(path, "rb") as file:
                for kind, table in marshal.loads(file.read()).items():
                    tables[kind].update(table)
    except (OSError, EOFError, ValueError, TypeError):
        return None
    texts, scripts, patterns = tables["texts"], tables["scripts"], tables["patterns"]

    def run(text, names, into):
        """How dataclasses runs the text of a class's methods."""
        builtins.exec(used(texts, text) if text in texts else text, names, into)

    def compile_script(text, file, mode):
        """How attrs compiles the same."""
        key = text, file
        return used(scripts, key) if key in scripts else builtins.compile(text, file, mode)

    def after_patterns(module):
        usual = module.compile

        def compile_pattern(text, flags=0):
            """How re makes a pattern of a text."""
            key = text, flags
            if key not in patterns:
                return usual(text, flags)
            flags, code, groups, names, numbers = used(patterns, key)
            return _sre.compile(text, flags, code, groups, names, numbers)

        module.compile = compile_pattern

    before = {"dataclasses": {"exec": run}, "attr._make": {"compile": compile_script, "hash": number}}
    # After the modules that are in the interpreter itself.
    sys.meta_path.insert(2, Modules(tables["modules"], before, {"re._compiler": after_patterns}))
    return tables


def wait():
    """Look for garbage once there are so many objects or a program asks for it, and from then on as ever."""
    usual = gc.get_threshold()

    def first(_phase, _info):
        gc.set_threshold(*usual)
        gc.callbacks.remove(first)

    gc.set_threshold(OBJECTS, *usual[1:])
    gc.callbacks.append(first)


take(f"{TABLES}/both", f"{TABLES}/{'zygote' if ZYGOTE in sys.orig_argv else 'bay0'}")
wait()
