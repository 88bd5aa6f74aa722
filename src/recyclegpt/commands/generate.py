"""`recyclegpt generate`: continue a prompt from a checkpoint, with any of the decoders."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.configuration.device import read_decoding
from recyclegpt.console import paint
from recyclegpt.decoding import Counts, Decoder, Sampler, StopStrings, Strategy, TextStreamer
from recyclegpt.errors import ConfigError


def run(argv: Sequence[str]) -> int:
    """The command."""
    arguments = parser().parse_intermixed_args(list(argv))
    cfg = compose_or_explain("generate", arguments.overrides)
    decoding, device, dtype = read_decoding(cfg)
    prompt = read_prompt(arguments.prompt, arguments.prompt_file)
    trained = load_trained(cfg.checkpoint, device)
    tokenizer, strategy = trained.tokenizer, decoding.make_strategy()
    decoder = Decoder.optimised(trained.model, dtype, decoding.compile, release=True)
    sampler = Sampler.seeded(decoding.sampling(), 1, decoding.seed, device)
    counts = Counts()
    pieces = tokenizer.decode_stream(skip_special_tokens=True)
    stop_strings = StopStrings(decoding.stop, tokenizer.decode)
    text = TextStreamer(stop_strings, pieces.step, pieces.finish)
    begin = time.perf_counter()
    stream = decoder.stream(
        [tokenizer.encode_prompt(prompt)], strategy, decoding.max_new_tokens, sampler, tokenizer.stop_ids, counts,
        stop_strings,
    )  # fmt: skip
    first = [*itertools.islice(stream, 1)]  # a prompt that does not fit is refused before anything is printed
    if not arguments.no_prompt:
        print(prompt, end="", flush=True)
    for new in itertools.chain(first, stream):
        for token, drafted in zip(new.tokens, new.drafted, strict=True):
            _show(text.add(token, drafted), arguments.mark)
    _show(text.end(), arguments.mark)
    print(flush=True)
    if arguments.stats:
        _print_stats(strategy, counts, time.perf_counter() - begin)
    return 0


def parser() -> argparse.ArgumentParser:
    """Options of this command, as opposed to Hydra overrides: a prompt never goes through Hydra's grammar."""
    own = argparse.ArgumentParser(prog="recyclegpt generate", allow_abbrev=False, add_help=False)
    source = own.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    source.add_argument("--prompt-file", metavar="FILE", type=Path, help="a file that holds it")
    own.add_argument("--mark", action="store_true", help="show drafted tokens in colour (on a terminal)")
    own.add_argument("--no-prompt", action="store_true", help="print the continuation alone")
    own.add_argument("--stats", action="store_true", help="print speed and acceptance rate to stderr")
    own.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, see below")
    return own


def read_prompt(text: str | None, path: Path | None) -> str:
    """The prompt from `--prompt`, else from the file, else from stdin.

    Raises:
        ConfigError: it is not UTF-8 text, or the file cannot be read.
    """
    source = "--prompt" if text is not None else f"--prompt-file: {path}" if path is not None else "stdin"
    try:
        if text is None and path is not None:
            return path.expanduser().read_text(encoding="utf-8")
        if text is None:
            if sys.stdin.isatty():
                print("reading the prompt from the terminal; end it with Ctrl-D", file=sys.stderr)
            text = sys.stdin.read()
        text.encode()  # bytes that are not UTF-8 arrive as halves of surrogate pairs
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{source}: cannot be read as UTF-8 text ({error})") from error
    return text


def _show(pieces: list[tuple[str, bool]], mark: bool) -> None:
    for piece, drafted in pieces:
        print(paint(piece, "green") if drafted and mark else piece, end="", flush=True)


def _print_stats(strategy: Strategy, counts: Counts, seconds: float) -> None:
    parts = [f"{strategy.name}: {counts.num_tokens} tokens in {seconds:.2f} s"]
    parts.append(f"{counts.num_backbone_passes} backbone passes")
    name, rate = ("acceptance rate", counts.acceptance) if strategy.lossless else ("agreement", counts.agreement)
    if rate is not None:
        parts.append(f"{name} {rate:.0%}")
    if counts.num_verified:
        parts.append(f"mean accepted length {counts.mean_accepted_length:.2f}")
    print(", ".join(parts), file=sys.stderr)
