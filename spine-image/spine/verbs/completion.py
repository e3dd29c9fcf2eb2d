"""`./spine completion bash|zsh`: a script with which the shell completes verbs, options, methods, parameters.

The verbs and their options are written into the script; what may be called comes from the cache of the
schemas when a word is completed, by `./spine completion --words`, which says nothing while that cache is
empty. Touches nothing else, needs nothing set up, installs nothing.
"""

import argparse
import importlib
import json
import sys

from spine import cli, methods
from spine.errors import Exit, SpineError

HELP = "a script that lets bash or zsh complete ./spine"

BASH = """# eval "$(./spine completion bash)", or keep it in ~/.local/share/bash-completion/completions/spine
_spine() {{
    local program=${{COMP_WORDS[0]/#\\~/$HOME}} current=${{COMP_WORDS[COMP_CWORD]}} verb=${{COMP_WORDS[1]-}}
    local options= words
    COMPREPLY=()
    if [ "$COMP_CWORD" = 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "{verbs}" -- "$current")
        return
    fi
    case $verb in
{options}
    esac
    case $current in
        -*) mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current"); return ;;
    esac
    case $verb in
        call)
            words=("${{COMP_WORDS[@]:2:COMP_CWORD-1}}")
            mapfile -t COMPREPLY < <("$program" completion --words "${{words[@]}}" 2>/dev/null)
            case ${{COMPREPLY[0]-}} in *=) compopt -o nospace 2>/dev/null ;; esac
            ;;
    esac
}}
complete -o default -F _spine spine
"""

ZSH = """#compdef spine
# eval "$(./spine completion zsh)" after compinit, or keep it as _spine in a directory of $fpath
_spine() {{
    local program=${{~words[1]}} verb=${{words[2]-}} current=${{words[CURRENT]}}
    local -a found options
    if (( CURRENT == 2 )); then
        compadd -- {verbs}
        return
    fi
    case $verb in
{options}
    esac
    if [[ $current == -* ]]; then
        compadd -- ${{=options}}
    elif [[ $verb == call ]]; then
        found=("${{(@f)$("$program" completion --words "${{(@)words[3,CURRENT]}}" 2>/dev/null)}}")
        if [[ ${{found[1]}} == *= ]]; then compadd -S '' -- $found; else compadd -- $found; fi
    else
        _files
    fi
}}
compdef _spine spine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("shell", nargs="?", choices=("bash", "zsh"))
    parser.add_argument(
        "--words",
        nargs=argparse.REMAINDER,
        metavar="WORD",
        help="what the script asks: what may stand for the last of these words of ./spine call",
    )


def run(args: argparse.Namespace) -> int:
    """Print."""
    if args.words is not None:
        found = methods.completions(args.words, methods.known() or {})
        sys.stdout.write("".join(f"{word}\n" for word in found))
        return Exit.OK
    if args.shell is None:
        raise SpineError(
            "which shell?",
            "there is a script for bash and one for zsh",
            'eval "$(./spine completion bash)"',
            Exit.USAGE,
        )
    script = text(args.shell)
    sys.stdout.write(json.dumps({"script": script}) + "\n" if args.json else script)
    return Exit.OK


def text(shell: str) -> str:
    """The script."""
    verbs = list(cli.verbs())
    rows = [f'        {verb}) options="{" ".join(options_of(verb))}" ;;' for verb in verbs]
    form = BASH if shell == "bash" else ZSH
    return form.format(verbs=" ".join([*verbs, "help"]), options="\n".join(rows))


def options_of(verb: str) -> list[str]:
    """The long options of a verb."""
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    parser.add_argument("--json", action="store_true")
    importlib.import_module(f"spine.verbs.{verb}").add_arguments(parser)
    return sorted(word for word in parser._option_string_actions if word.startswith("--"))
