"""`recyclegpt generate`: continue a prompt from a checkpoint with any of the decoders."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from recyclegpt.cli.compose import compose_or_explain
from recyclegpt.cli.console import paint
from recyclegpt.decoding import Counts, Decoder, Sampler, SamplingConfig, make_strategy
from recyclegpt.errors import ConfigError
from recyclegpt.models import named_dtype
from recyclegpt.training.checkpoint import load_trained


def run(argv: Sequence[str]) -> int:
    """The command."""
    arguments, overrides = parse_arguments(argv)
    cfg = compose_or_explain("generate", overrides)
    problems = [] if isinstance(cfg.decoding.max_new_tokens, int) else ["decoding.max_new_tokens: not a whole number"]
    device, dtype = choose_device(cfg.device, cfg.decoding.dtype, problems, "decoding.dtype")
    if problems:
        raise ConfigError(problems)
    decoding = cfg.decoding
    try:
        strategy = make_strategy(decoding.strategy, decoding.num_recycled)
        sampling = SamplingConfig(decoding.temperature, decoding.top_k, decoding.top_p)
    except ConfigError as error:
        raise ConfigError([f"decoding.{problem}" for problem in error.problems]) from error
    prompt = read_prompt(arguments)
    trained = load_trained(cfg.checkpoint, device)
    decoder = Decoder(trained.model, dtype)
    # An empty prompt begins where a document begins: after an end token.
    tokens = trained.tokenizer.encode(prompt) or [trained.tokenizer.eos_id]
    text = trained.tokenizer.decode_stream(skip_special_tokens=True)
    sampler = Sampler.seeded(sampling, 1, decoding.seed, device)
    counts = Counts()
    begin = time.perf_counter()
    stream = decoder.stream([tokens], strategy, decoding.max_new_tokens, sampler, [trained.tokenizer.eos_id], counts)
    first = next(stream, None)  # a prompt that does not fit is refused before anything is printed
    if not arguments.no_prompt:
        print(prompt, end="", flush=True)
    for emitted in itertools.chain([] if first is None else [first], stream):
        for token, recycled in zip(emitted.tokens, emitted.recycled, strict=True):
            piece = text.step(token)
            print(paint(piece, "green") if recycled and arguments.mark else piece, end="", flush=True)
    print(text.finish(), flush=True)
    if arguments.stats:
        seconds = time.perf_counter() - begin
        share = counts.acceptance if strategy.lossless else counts.agreement
        word = "accepted" if strategy.lossless else "agreed with the backbone"
        print(
            f"{strategy.name}: {counts.num_tokens} tokens in {seconds:.2f} s, "
            f"{counts.num_backbone_passes} backbone passes"
            + ("" if share is None else f", {share:.0%} of the recycled tokens {word}"),
            file=sys.stderr,
        )
    return 0


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of this command, told from Hydra overrides: a prompt never goes through Hydra's grammar."""
    parser = argparse.ArgumentParser(
        prog="recyclegpt generate",
        description="Continue a prompt from a checkpoint. Without --prompt and --prompt-file it is read from stdin.",
        epilog="Settings, as KEY=VALUE: checkpoint (a run folder or .ckpt file; default: the newest under "
        "outputs/train), device, decoding.strategy (autoregressive, alternating, verified), decoding.num_recycled, "
        "decoding.temperature, decoding.top_k, decoding.top_p, decoding.max_new_tokens, decoding.seed, "
        "decoding.dtype; decoding=sampled samples.",
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the text to continue")
    source.add_argument("--prompt-file", type=Path, help="a file that holds it")
    parser.add_argument("--mark", action="store_true", help="show recycled tokens in colour (on a terminal)")
    parser.add_argument("--no-prompt", action="store_true", help="print the continuation alone")
    parser.add_argument("--stats", action="store_true", help="say on stderr how fast it went")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings")
    arguments = parser.parse_intermixed_args(list(argv))
    return arguments, arguments.overrides


def read_prompt(arguments: argparse.Namespace) -> str:
    """The prompt from wherever it was given.

    Raises:
        ConfigError: the file cannot be read as UTF-8 text.
    """
    if arguments.prompt is not None:
        return str(arguments.prompt)
    if arguments.prompt_file is None:
        if sys.stdin.isatty():
            print("reading the prompt from the terminal; end it with Ctrl-D", file=sys.stderr)
        return sys.stdin.read()
    path = arguments.prompt_file.expanduser()
    try:
        return str(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompt-file: {path} cannot be read as UTF-8 text ({error})") from error


def choose_device(device: str, dtype: str, problems: list[str], key: str) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a command; what cannot be had is added to `problems`."""
    chosen = torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        problems.append(f"device: {device!r} is unknown; use cpu, cuda or cuda:N")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        problems.append(f"device: {device}, but torch sees no CUDA device here; use cpu")
        chosen = torch.device("cpu")
    try:
        return chosen, named_dtype(dtype, chosen)
    except ConfigError as error:
        problems += [f"{key.removesuffix('dtype')}{problem}" for problem in error.problems]
    return chosen, torch.float32
