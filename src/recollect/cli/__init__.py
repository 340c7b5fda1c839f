"""The command line: `recollect VERB ...`.

To add a verb: write `cli/VERB.py` with a dataclass `Arguments` (tyro makes the flags of its fields, and the help of
their docstrings) and `run(arguments) -> int | None` (the exit code; raise ValueError or OSError for the user's faults),
then name it in VERBS with one line of help. Modules are imported only for the verb that is run.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

VERBS: dict[str, str] = {
    "models": "list the detectors, their parameters and published AP",
    "train": "train a detector on your images",
    "eval": "measure a trained detector, or a file of predictions",
    "predict": "find objects in images",
    "analyze": "see why a detector errs, decoder stage by decoder stage",
    "plot": "draw loss and AP curves of runs",
    "check": "examine a dataset before you train on it, and mend a copy",
    "convert-data": "write a dataset as COCO, Pascal VOC or YOLO",
    "browse": "draw what a detector will be fed",
    "demo": "train two small detectors on handwritten digits, with and without recollection",
    "convert": "read another project's checkpoint, or write one again",
    "replay": "run a batch again whose numbers went bad",
}

USER_FAULT, UNEXPECTED, INTERRUPTED = 1, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Errors are one sentence, with `--debug` a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    verb, rest = words[0], words[1:]
    if verb == "--version":
        from recollect import __version__

        print(f"recollect {__version__}")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"verbs are {', '.join(VERBS)}"
        return complain(f"there is no verb {verb!r}: {hint}", 2)
    try:
        return run_verb(verb, rest)
    except KeyboardInterrupt as interrupt:
        return complain(str(interrupt) or "interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        return complain(*explain(error))


def run_verb(verb: str, words: Sequence[str]) -> int:
    """Import the verb's module, parse its flags, run it."""
    import tyro

    module = importlib.import_module(f"recollect.cli.{verb.replace('-', '_')}")
    config = (tyro.conf.FlagCreatePairsOff,)
    arguments = tyro.cli(module.Arguments, prog=f"recollect {verb}", args=list(words), config=config)
    return module.run(arguments) or 0


def explain(error: Exception) -> tuple[str, int]:
    """An error as a sentence, and the exit code."""
    text = str(error).strip() or type(error).__name__
    if "DataLoader worker" in text and "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]  # what the worker itself said
    if isinstance(error, ValueError | OSError | ImportError) or type(error).__module__.startswith("recollect."):
        if isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{error.filename}: {error.strerror}"
        return text, USER_FAULT
    return f"unexpected {type(error).__name__}: {text.splitlines()[0]} (--debug shows where)", UNEXPECTED


def complain(text: str, code: int) -> int:
    """Say what is wrong on standard error."""
    print(f"recollect: {text}", file=sys.stderr)
    return code


def usage() -> str:
    """All verbs with a line each."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return (
        f"usage: recollect VERB [arguments]\n\n{verbs}\n\nrecollect VERB --help explains each; --debug shows tracebacks"
    )
