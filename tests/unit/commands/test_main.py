"""The command table, and what a mistake, an interrupt or an exit become."""

import subprocess
import sys
import types

import pytest

from recyclegpt import __version__
from recyclegpt.commands.main import COMMANDS, main
from recyclegpt.errors import ConfigError


@pytest.fixture
def command(monkeypatch):
    """Put a function in the place of `recyclegpt train`."""

    def install(function):
        module = types.ModuleType("recyclegpt.commands.train")
        module.run = function
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def raising(error):
    def run(argv):
        raise error

    return run


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, line in COMMANDS.items():
        assert name in out
        assert line in out
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: recyclegpt COMMAND")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"recyclegpt {__version__}\n"


def test_an_unknown_command_gets_a_suggestion(capsys):
    assert main(["trian", "a=1"]) == 2
    assert capsys.readouterr().err == "recyclegpt: unknown command 'trian': did you mean train?\n"
    assert main(["xyz"]) == 2
    assert "choose from: train, adapt, " in capsys.readouterr().err


def test_a_command_gets_its_arguments_and_the_whole_sys_argv(command, monkeypatch):
    seen = []

    def run(argv):
        seen.append((argv, sys.argv))
        return 3

    command(run)
    monkeypatch.setattr(sys, "argv", ["/bin/recyclegpt", "train", "seed=1"])
    assert main() == 3
    assert main(["train", "seed=2"]) == 3
    assert seen == [
        (["seed=1"], ["/bin/recyclegpt", "train", "seed=1"]),
        (["seed=2"], ["/bin/recyclegpt", "train", "seed=2"]),
    ]
    assert sys.argv == ["/bin/recyclegpt", "train", "seed=1"]


def test_a_mistake_is_a_message_and_exit_code_2(command, capsys):
    command(raising(ConfigError(["model.num_heads: 3 does not\ndivide", "data.paths: nothing there"])))
    assert main(["train"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "recyclegpt train: 2 problems",
        "  - model.num_heads: 3 does not",
        "    divide",
        "  - data.paths: nothing there",
    ]
    command(raising(ConfigError("one")))
    main(["train"])
    assert capsys.readouterr().err.splitlines()[0] == "recyclegpt train: 1 problem"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "recyclegpt train: interrupted\n"),
        (SystemExit(0), 0, ""),
        (SystemExit(), 0, ""),
        (SystemExit(7), 7, ""),
    ],
)
def test_exits(command, capsys, error, code, message):
    command(raising(error))
    assert main(["train"]) == code
    assert capsys.readouterr().err == message


def test_a_bug_keeps_its_traceback(command):
    command(raising(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        main(["train"])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name, capsys):
    assert main([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: recyclegpt {name}")
    examples = page.partition("\nexamples:\n")[2].splitlines()
    assert len([line for line in examples if line.startswith(f"  recyclegpt {name}")]) == 3


def test_help_shows_settings_with_their_comments_and_choices_of_groups(capsys):
    assert main(["bench-training", "-h"]) == 0
    page = capsys.readouterr().out
    assert "  accumulate: 1 # forward and backward passes of a step\n" in page
    assert "\n  model      gpt_125m, " in page
    assert "defaults:" not in page
    assert main(["generate", "--prompt", "x", "--help"]) == 0
    page = capsys.readouterr().out
    assert "--prompt-file FILE" in page
    assert "    temperature: 0.0 # 0 is greedy\n" in page


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--help"], 0, "usage: recyclegpt COMMAND"),
        (["generate", "--help"], 0, "--prompt-file FILE"),
    ],
)
def test_help_is_answered_without_importing_torch(argv, code, words):
    program = (
        f"import sys, runpy; sys.argv = ['recyclegpt', *{argv}]\n"
        "try: runpy.run_module('recyclegpt', run_name='__main__')\n"
        f"except SystemExit as leaving: assert (leaving.code or 0) == {code}, leaving.code\n"
        "heavy = {'torch', 'lightning', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout + done.stderr


def test_a_closed_pipe_is_no_traceback():
    program = (
        "import sys, types\n"
        "module = types.ModuleType('recyclegpt.commands.train')\n"
        "def run(argv):\n"
        "    for _ in range(100000): print('a line of text')\n"
        "    return 0\n"
        "module.run = run\n"
        "import recyclegpt.commands.main as m\n"
        "sys.modules[module.__name__] = module\n"
        "sys.exit(m.main(['train']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
