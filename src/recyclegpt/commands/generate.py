"""`recyclegpt generate`: continue a prompt from a checkpoint, with any of the decoders."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.commands.prompt_arguments import read_arguments
from recyclegpt.configuration.command_settings import read_decoding
from recyclegpt.configuration.compose import compose_or_explain
from recyclegpt.console import paint
from recyclegpt.data.chat import render_chat
from recyclegpt.data.prompts import Prompt, chat_in, encode_prompts
from recyclegpt.data.tokenizer import TextTokenizer
from recyclegpt.decoding import Counts, Decoder, Sampler, StopStrings, Strategy, TextStreamer
from recyclegpt.decoding.config import DecodingConfig
from recyclegpt.errors import ConfigError


def run(argv: Sequence[str]) -> int:
    """The command."""
    arguments = read_arguments(argv)
    cfg = compose_or_explain("generate", arguments.overrides)
    decoding, device, dtype = read_decoding(cfg)
    asks_nothing = arguments.chat is True and arguments.prompt is None and arguments.prompt_file is None
    talks = asks_nothing and sys.stdin.isatty()
    prompt = Prompt(None) if talks else read_prompt(arguments)
    trained = load_trained(cfg.checkpoint, device, cfg.module)
    tokenizer, strategy = trained.tokenizer, decoding.strategy_for(trained.model)
    decoder = Decoder.optimised(
        trained.model, dtype, decoding.compile, release=True, draft_dtype=decoding.named_draft_dtype()
    )
    writer = TextWriter(decoder, strategy, decoding, tokenizer, arguments.mark)
    if talks:
        talk(writer)
        return 0
    (row,) = encode_prompts(tokenizer, [prompt], cfg.prompt_special_tokens)
    if prompt.messages is None and tokenizer.chat is not None:
        print(
            "the tokenizer has a chat template, by which --chat asks; this prompt is continued as text", file=sys.stderr
        )
    for _ in writer.write(row, "" if prompt.text is None or arguments.no_prompt else prompt.text):
        pass
    if arguments.stats:
        print(writer.stats(), file=sys.stderr)
    return 0


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


@dataclass
class TextWriter:
    """Decodes one text at a time and shows it on the terminal as it comes."""

    decoder: Decoder
    strategy: Strategy
    decoding: DecodingConfig
    tokenizer: TextTokenizer
    mark: bool
    """Show drafted tokens in colour."""

    def write(self, row: Sequence[int], before: str = "") -> Iterator[str]:
        """Show `before` and what follows this prompt; give it piece by piece.

        Raises:
            ConfigError: the prompt does not fit; nothing is shown then.
        """
        self.counts, self.begin = Counts(), time.perf_counter()
        sampler = Sampler.seeded(self.decoding.sampling(), 1, self.decoding.seed, self.decoder.model.device)
        pieces = self.tokenizer.decode_stream(skip_special_tokens=True)
        stop_strings = StopStrings(self.decoding.stop, self.tokenizer.decode)
        text = TextStreamer(stop_strings, pieces.step, pieces.finish)
        stream = self.decoder.stream(
            [row], self.strategy, self.decoding.max_new_tokens, sampler, self.tokenizer.stop_ids, self.counts,
            stop_strings,
        )  # fmt: skip
        first = [*itertools.islice(stream, 1)]  # a prompt that does not fit is refused before anything is printed
        print(before, end="", flush=True)
        for new in itertools.chain(first, stream):
            for token, drafted in zip(new.tokens, new.drafted, strict=True):
                yield from self._show(text.add(token, drafted))
        yield from self._show(text.end())
        print(flush=True)

    def _show(self, pieces: list[tuple[str, bool]]) -> Iterator[str]:
        for piece, drafted in pieces:
            print(paint(piece, "green") if drafted and self.mark else piece, end="", flush=True)
            yield piece

    def stats(self) -> str:
        """Speed and acceptance of the last text."""
        counts, seconds = self.counts, time.perf_counter() - self.begin
        parts = [f"{self.strategy.name}: {counts.num_tokens} tokens in {seconds:.2f} s"]
        parts.append(f"{counts.num_tokens / seconds:.1f} tokens/s, {counts.num_backbone_passes} backbone passes")
        lossless = self.strategy.lossless
        name, rate = ("acceptance rate", counts.acceptance) if lossless else ("agreement", counts.agreement)
        if rate is not None:
            parts.append(f"{name} {rate:.0%}")
        if counts.num_verified:
            parts.append(f"mean accepted length {counts.mean_accepted_length:.2f}")
        return ", ".join(parts)


def talk(writer: TextWriter) -> None:
    """Answer the terminal's lines until one is empty or `/exit`, or input ends; Ctrl-C stops an answer.

    Where the context is full, the oldest turns are left out.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    context, new = writer.decoder.model.config.context_length, writer.decoding.max_new_tokens
    room, told = max(context - new, context // 2), False
    turns: list[dict[str, str]] = []
    render_chat(writer.tokenizer, [{"role": "user", "content": ""}])
    print("Ctrl-C stops an answer; an empty line, /exit or Ctrl-D ends the chat", file=sys.stderr)
    while (line := _line()) not in ("", "/exit"):
        turns.append({"role": "user", "content": line})
        row = render_chat(writer.tokenizer, turns)
        while len(row) > room and len(turns) > 1:
            turns = turns[2:]
            row = render_chat(writer.tokenizer, turns)
            if not told:
                print(f"the context of {context} tokens is full; the oldest turns are left out", file=sys.stderr)
            told = True
        answer: list[str] = []
        try:
            answer.extend(writer.write(row))
        except KeyboardInterrupt:
            print()
        except ConfigError as error:
            print(*error.problems, sep="\n", file=sys.stderr)
            del turns[-1]
            continue
        turns.append({"role": "assistant", "content": "".join(answer)})
        print(writer.stats(), file=sys.stderr)


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
