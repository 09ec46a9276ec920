"""`ivid2vid COMMAND`: all commands of the package; the same as `python -m ivid2vid_jax.COMMAND`."""

import difflib
import importlib
import sys

import ivid2vid_jax

COMMANDS = {
    "edit": "edit clips by instructions",
    "app": "the editor in a browser",
    "train": "train an editor, or the networks it consists of",
    "prepare": "convert triplets into a dataset, or encode it once for fast training",
    "synthesize": "make triplets from clips: the data engine",
    "evaluate": "measure edits and editors",
    "convert": "import and export weights: diffusers, PyTorch, single files",
    "plan": "memory and time of training and editing on TPU slices, before renting them",
}


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<11} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"ivid2vid {ivid2vid_jax.__version__}: edit video by instruction",
            "",
            "usage: ivid2vid COMMAND [options]",
            "",
            *lines,
            "",
            'ivid2vid COMMAND --help shows the options. First: ivid2vid edit --instruction "make '
            'the circle blue"',
        ]
    )


def main() -> None:
    """Runs a command; prints the commands if none is given."""
    command, *options = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help"):
        print(usage())
    elif command in ("-V", "--version", "version"):
        print(f"ivid2vid_jax {ivid2vid_jax.__version__}")
    elif command in COMMANDS:
        sys.argv = [f"ivid2vid {command}", *options]
        module = "app.__main__" if command == "app" else command
        importlib.import_module(f"ivid2vid_jax.{module}").main()
    else:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        suggestion = f"; did you mean {near[0]!r}?" if near else ""
        print(f"error: no command {command!r}{suggestion}", file=sys.stderr)
        print(f"commands: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
