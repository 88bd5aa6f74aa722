"""`recyclegpt COMMAND [overrides]`: finds the command, and turns a user's mistake into a message and exit code 2.

The commands are imported only when called, so that `recyclegpt --help` answers at once.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from recyclegpt import __version__
from recyclegpt.console import format_table
from recyclegpt.errors import ConfigError, RunError, Stopped

COMMANDS: Mapping[str, str] = {
    "train": "train a model and watch it decode; -m or sweep=NAME for many",
    "adapt": "train a recyclable module for a pretrained backbone, which stays frozen",
    "generate": "continue a prompt from a checkpoint, with any decoder",
    "generate-corpus": "write many documents of the backbone's own text as token shards",
    "evaluate": "held-out perplexities and agreement of a checkpoint, or lm-eval tasks",
    "bench": "speed of the decoders compared with their ceilings",
    "bench-runs": "the same for every finished run of a sweep",
    "bench-training": "speed of training steps, with the module and without it",
    "report": "tables, figures and pages from run folders",
    "export": "write a trained model for transformers, vLLM or the hub, with a model card",
    "tokenize": "write a corpus to disk as token shards",
    "doctor": "check versions, device, compiler, disk and the newest run, and say what to do",
}
"""Name and one line of help. `bench-runs` is `run(argv) -> int` of `recyclegpt.commands.bench_runs`, and so on."""
MISTAKE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: command and its arguments; default: `sys.argv`.

    Returns:
        The exit code: 0 done; 1 a run or jobs of a sweep failed; 2 a mistake of the user's; 130, 143, 138 and 129
        stopped by Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP. All but 0 are explained on stderr.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(usage(), file=sys.stderr)
        return MISTAKE
    name, *rest = arguments
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"recyclegpt {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from: {', '.join(COMMANDS)}"
        print(f"recyclegpt: unknown command {name!r}: {hint}", file=sys.stderr)
        return MISTAKE
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a model writes what a terminal may not know
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]  # provenance, and children of DDP, are made from it
    config_name = name.replace("-", "_")
    try:
        if {"-h", "--help"} & {*rest}:
            from recyclegpt.commands.help import help_text

            print(help_text(name, COMMANDS[name]))
            return 0
        if name != "doctor":
            provide_cache()
        module = importlib.import_module(f"recyclegpt.commands.{config_name}")
        return int(module.run(rest))
    except ConfigError as error:
        print(explain(name, error), file=sys.stderr)
        return MISTAKE
    except RunError as error:
        print(f"recyclegpt {name}: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"recyclegpt {name}: {stopped.message}", file=sys.stderr)
        return int(stopped.code or 0)
    except KeyboardInterrupt:
        print(f"recyclegpt {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        is_gone = error.errno == errno.ENOENT and error.filename is None  # as os.getcwd says it
        if error.errno not in (*DISK_FULL, *NOT_WRITABLE) and not is_gone:
            raise
        remedy = (
            "free some space, then run the same command again" if error.errno in DISK_FULL else
            "start in a folder that you may write to, or name one (output_dir=FOLDER; train: hydra.run.dir=FOLDER)"
        )  # fmt: skip
        where = error.filename or ("the working folder" if is_gone else "a file")
        print(f"recyclegpt {name}: {where}: {error.strerror}; {remedy}", file=sys.stderr)
        return 1 if error.errno in DISK_FULL else MISTAKE
    except SystemExit as leaving:  # argparse has said why
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    finally:
        sys.argv = before


def provide_cache() -> None:
    """Where the cache cannot be written, as in a read-only home folder, use one in the folder for temporary files."""
    cache = Path(os.environ.get("RECYCLEGPT_CACHE") or "~/.cache/recyclegpt")
    try:
        cache = cache.expanduser()
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except (OSError, RuntimeError) as error:  # a RuntimeError: there is no home folder
        instead = Path(tempfile.gettempdir(), f"recyclegpt-{os.getuid()}")
        os.environ["RECYCLEGPT_CACHE"] = str(instead)
        why = getattr(error, "strerror", None) or error
        print(f"{cache} cannot be written ({why}): using {instead}; RECYCLEGPT_CACHE names another", file=sys.stderr)


def usage() -> str:
    """What `recyclegpt --help` prints."""
    commands = format_table([(f"  {name}", line) for name, line in COMMANDS.items()])
    return (
        "usage: recyclegpt COMMAND [key=value ...]\n\n"
        f"commands:\n{commands}\n\n"
        "recyclegpt COMMAND --help shows its settings and examples; --version shows the version."
    )


def explain(name: str, error: ConfigError) -> str:
    """The message for a user's mistake: a count and one bullet a problem."""
    num_problems = len(error.problems)
    bullets = [f"  - {problem}".replace("\n", "\n    ") for problem in error.problems]
    return "\n".join([f"recyclegpt {name}: {num_problems} problem{'' if num_problems == 1 else 's'}", *bullets])
