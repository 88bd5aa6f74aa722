"""`recyclegpt generate`: continue a prompt from a checkpoint with any of the decoders, or many of a corpus (`bulk`)."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.configuration.device import choose_device
from recyclegpt.configuration.hash import to_plain
from recyclegpt.configuration.schemas import BULK, DECODING, type_problems
from recyclegpt.console import paint
from recyclegpt.decoding import (
    Counts,
    Decoder,
    Sampler,
    SamplingConfig,
    StopStrings,
    Strategy,
    TextStreamer,
    make_strategy,
)
from recyclegpt.decoding.corpus_writer import BulkConfig, text_problems
from recyclegpt.errors import ConfigError


def run(argv: Sequence[str]) -> int:
    """The command."""
    arguments, overrides = parse_arguments(argv)
    cfg = compose_or_explain("generate", overrides)
    decoding = cfg.decoding
    problems = type_problems(decoding, DECODING, "decoding.") + type_problems(cfg.bulk, BULK, "bulk.")
    problems += type_problems(cfg, {"checkpoint": str, "device": str})
    if problems:
        raise ConfigError(problems)
    if not 0 <= decoding.seed < 2**63:
        problems.append(f"decoding.seed: {decoding.seed} is not between 0 and 2^63")
    stop = [decoding.stop] if isinstance(decoding.stop, str) else list(decoding.stop)
    if not all(stop):
        problems.append("decoding.stop: an empty string ends every text at once; leave it out")
    device, dtype = choose_device(cfg.device, decoding.dtype, problems, "decoding.dtype", decoding=True)
    try:
        strategy = make_strategy(decoding.strategy, decoding.num_recycled, decoding.confidence)
        if cfg.bulk.out is not None:
            problems += [f"decoding.{problem}" for problem in text_problems(strategy)]
    except ConfigError as error:
        problems += [f"decoding.{problem}" for problem in error.problems]
    try:
        sampling = SamplingConfig(
            decoding.temperature, decoding.top_k, decoding.top_p, decoding.min_p, decoding.repetition_penalty
        )
    except ConfigError as error:
        problems += [f"decoding.{problem}" for problem in error.problems]
    bulk = _bulk_settings(cfg, arguments, problems)
    if problems:
        raise ConfigError(problems)
    if bulk is not None:
        # Imported here, since the commands whose parts it uses take their device from this file.
        from recyclegpt.commands.generate_corpus import generate_corpus

        return generate_corpus(cfg, bulk, strategy, sampling, device, dtype)
    prompt = read_prompt(arguments)
    trained = load_trained(cfg.checkpoint, device)
    tokenizer = trained.tokenizer
    decoder = Decoder.optimised(trained.model, dtype, decoding.compile, release=True)
    tokens = tokenizer.encode_prompt(prompt)
    sampler = Sampler.seeded(sampling, 1, decoding.seed, device)
    counts = Counts()
    pieces = tokenizer.decode_stream(skip_special_tokens=True)
    stop_strings = StopStrings(stop, tokenizer.decode)
    text = TextStreamer(stop_strings, pieces.step, pieces.finish)
    begin = time.perf_counter()
    stream = decoder.stream(
        [tokens], strategy, decoding.max_new_tokens, sampler, tokenizer.stop_ids, counts, stop_strings
    )
    first = next(stream, None)  # a prompt that does not fit is refused before anything is printed
    if not arguments.no_prompt:
        print(prompt, end="", flush=True)
    for emitted in itertools.chain([] if first is None else [first], stream):
        for token, recycled in zip(emitted.tokens, emitted.drafted, strict=True):
            _show(text.add(token, recycled), arguments.mark)
    _show(text.end(), arguments.mark)
    print(flush=True)
    if arguments.stats:
        _print_stats(strategy, counts, time.perf_counter() - begin)
    return 0


def _bulk_settings(cfg: DictConfig, arguments: argparse.Namespace, problems: list[str]) -> BulkConfig | None:
    """The settings of a corpus to write; None for a prompt. What does not go together is added to `problems`."""
    given = [name for name in arguments.overrides if name.startswith(("bulk.", "data=", "data."))]
    given = [name for name in given if not name.startswith("bulk.out=")]
    if cfg.bulk.out is None:
        if given:
            problems.append(f"bulk.out: missing, and {', '.join(given)} would decide nothing; set bulk.out=FOLDER")
        return None
    if arguments.prompt is not None or arguments.prompt_file is not None:
        problems.append("--prompt: with bulk.out prompts come from a corpus; leave one of the two out")
    if cfg.decoding.stop:
        problems.append("decoding.stop: with bulk.out documents end with the end token alone; leave it out")
    if cfg.seed != cfg.decoding.seed:
        problems.append("seed: texts and prompts are drawn with decoding.seed; set that one")
    if not type_problems(cfg.bulk, BULK):
        try:
            sizes = {name: value for name, value in to_plain(cfg)["bulk"].items() if name != "out"}
            return BulkConfig(**sizes)
        except ConfigError as error:
            problems += [f"bulk.{problem}" for problem in error.problems]
    return None


def _show(pieces: list[tuple[str, bool]], mark: bool) -> None:
    for piece, recycled in pieces:
        print(paint(piece, "green") if recycled and mark else piece, end="", flush=True)


def _print_stats(strategy: Strategy, counts: Counts, seconds: float) -> None:
    share = counts.acceptance if strategy.lossless else counts.agreement
    word = "accepted" if strategy.lossless else "agreed with the backbone"
    print(
        f"{strategy.name}: {counts.num_tokens} tokens in {seconds:.2f} s, {counts.num_backbone_passes} backbone passes"
        + ("" if share is None else f", {share:.0%} of the recycled tokens {word}"),
        file=sys.stderr,
    )


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of this command, told from Hydra overrides: a prompt never goes through Hydra's grammar."""
    parser = argparse.ArgumentParser(
        prog="recyclegpt generate",
        description="Continue a prompt from a checkpoint. Without --prompt and --prompt-file it is read from stdin.",
        epilog="Settings, as KEY=VALUE: checkpoint (a run folder or .ckpt file; default: the newest under "
        "outputs/train), device, decoding.strategy (autoregressive, alternating, verified), decoding.num_recycled, "
        "decoding.confidence, decoding.temperature, decoding.top_k, decoding.top_p, decoding.min_p, "
        "decoding.repetition_penalty, decoding.max_new_tokens, decoding.stop=[...] (strings that end the text), "
        "decoding.seed, decoding.dtype, decoding.compile; decoding=sampled samples. bulk.out=FOLDER writes many "
        "documents as token shards instead, for data=tokenized data.path=FOLDER: their prompts are the first "
        "bulk.prompt_tokens tokens of bulk.num_documents documents (bulk.num_val_documents for validation) of the "
        "checkpoint's corpus, or of data=GROUP, continued by bulk.new_tokens, bulk.batch at a time. The same command "
        "goes on where it was stopped.",
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
        return _encodable(str(arguments.prompt), "--prompt")
    if arguments.prompt_file is None:
        if sys.stdin.isatty():
            print("reading the prompt from the terminal; end it with Ctrl-D", file=sys.stderr)
        try:
            return _encodable(sys.stdin.read(), "prompt")
        except UnicodeDecodeError as error:
            raise ConfigError(f"prompt: what was read from stdin is not UTF-8 text ({error})") from error
    path = arguments.prompt_file.expanduser()
    try:
        return str(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompt-file: {path} cannot be read as UTF-8 text ({error})") from error


def _encodable(prompt: str, key: str) -> str:
    # The shell's bytes that are not UTF-8 arrive as halves of surrogate pairs.
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{key}: is not UTF-8 text (character {error.start + 1}); give it in UTF-8") from error
    return prompt
