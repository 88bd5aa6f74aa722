"""`recyclegpt generate`: continue a prompt from a checkpoint, with any of the decoders."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.configuration.device import read_decoding
from recyclegpt.configuration.schemas import read_settings
from recyclegpt.console import paint
from recyclegpt.data.prompt_file import Prompt, PromptSettings, chat_in, encode_prompts
from recyclegpt.decoding import Counts, Decoder, Sampler, StopStrings, Strategy, TextStreamer
from recyclegpt.errors import ConfigError, Problems


def run(argv: Sequence[str]) -> int:
    """The command."""
    arguments = read_arguments(argv)
    cfg = compose_or_explain("generate", arguments.overrides)
    problems = Problems()
    with problems.under():
        decoding, device, dtype = read_decoding(cfg)
    with problems.under():
        reading = read_settings(PromptSettings, cfg)
    problems.raise_any()
    prompt = read_prompt(arguments)
    trained = load_trained(cfg.checkpoint, device)
    tokenizer, strategy = trained.tokenizer, decoding.strategy_for(trained.model)
    decoder = Decoder.optimised(
        trained.model, dtype, decoding.compile, release=True, draft_dtype=decoding.named_draft_dtype()
    )
    sampler = Sampler.seeded(decoding.sampling(), 1, decoding.seed, device)
    counts = Counts()
    pieces = tokenizer.decode_stream(skip_special_tokens=True)
    stop_strings = StopStrings(decoding.stop, tokenizer.decode)
    text = TextStreamer(stop_strings, pieces.step, pieces.finish)
    rows = encode_prompts(tokenizer, [prompt], reading)
    if prompt.messages is None and tokenizer.chat is not None:
        print(
            "the tokenizer has a chat template, by which --chat asks; this prompt is continued as text", file=sys.stderr
        )
    begin = time.perf_counter()
    stream = decoder.stream(
        rows, strategy, decoding.max_new_tokens, sampler, tokenizer.stop_ids, counts,
        stop_strings,
    )  # fmt: skip
    first = [*itertools.islice(stream, 1)]  # a prompt that does not fit is refused before anything is printed
    if prompt.text is not None and not arguments.no_prompt:
        print(prompt.text, end="", flush=True)
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
    source.add_argument("--prompt-file", metavar="FILE", type=Path, help="a file that holds it, or a chat's messages")
    own.add_argument(
        "--chat", metavar="TEXT", nargs="?", const=True,
        help="ask the text, or what --prompt, --prompt-file or stdin holds, by the tokenizer's chat template",
    )  # fmt: skip
    own.add_argument("--mark", action="store_true", help="show drafted tokens in colour (on a terminal)")
    own.add_argument("--no-prompt", action="store_true", help="print the continuation alone")
    own.add_argument("--stats", action="store_true", help="print speed and acceptance rate to stderr")
    own.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, see below")
    return own


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options; what looks like a setting after a bare `--chat` is one.

    Raises:
        ConfigError: two prompts are given.
    """
    arguments = parser().parse_intermixed_args(list(argv))
    if isinstance(arguments.chat, str):
        if re.fullmatch(r"[+~]*[\w./@]+=\S*", arguments.chat) and f"--chat={arguments.chat}" not in argv:
            arguments.overrides.append(arguments.chat)
            arguments.chat = True
        elif arguments.prompt is not None or arguments.prompt_file is not None:
            raise ConfigError("--chat: its text and another prompt were given; give one of them")
    return arguments


def read_prompt(arguments: argparse.Namespace) -> Prompt:
    """The prompt from `--chat` or `--prompt`, else from the file, else from stdin; `{"messages": [...]}` is a chat.

    Raises:
        ConfigError: it is not UTF-8 text, its messages are faulty, or the file cannot be read.
    """
    text, path = arguments.prompt, arguments.prompt_file
    if asked := isinstance(arguments.chat, str):
        text = arguments.chat
    source = f"--{'chat' if asked else 'prompt'}" if text is not None else "stdin" if path is None else f"{path}"
    try:
        if text is None and path is not None:
            text = path.expanduser().read_text(encoding="utf-8-sig")
        elif text is None:
            if sys.stdin.isatty():
                print("reading the prompt from the terminal; end it with Ctrl-D", file=sys.stderr)
            text = sys.stdin.read().removeprefix("\ufeff")
        text.encode()  # bytes that are not UTF-8 arrive as halves of surrogate pairs
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{source}: cannot be read as UTF-8 text ({error})") from error
    try:
        messages = None if source.startswith("--") else chat_in(text)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    if messages is None and arguments.chat is not None:
        messages = [{"role": "user", "content": text}]
    return Prompt(text) if messages is None else Prompt(None, messages)


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
