"""Tables line up; colour is for terminals."""

import io
import math

import pytest

from recyclegpt.console import format_table, paint, print_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_line_up_and_numbers_stand_to_the_right():
    table = format_table(
        [("autoregressive", 57.123456, 1, None), ("alternating", 94.0, 12345, 1.5)],
        ["decoder", "tokens/s", "n", "speedup"],
    )
    assert table.splitlines() == [
        "decoder         tokens/s       n  speedup",
        "--------------  --------  ------  -------",
        "autoregressive     57.12       1        -",
        "alternating           94  12,345      1.5",
    ]


def test_numbers_keep_four_digits():
    table = format_table([(math.nan,), (123456.7,), (0.000123456,), (math.inf,), (True,)])
    assert table.split() == ["-", "123,457", "0.0001235", "inf", "True"]


def test_a_table_may_be_empty_but_not_ragged():
    assert format_table([]) == ""
    assert format_table([], ["a", "b"]).splitlines()[0] == "a  b"
    for rows, header in (([(1, 2), (1,)], None), ([(1, 2)], ["one"])):
        with pytest.raises(ValueError, match="argument"):
            format_table(rows, header)


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch):
    assert paint("x", "red") == "x"
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    print_table([(1,)], ["n"])
    assert terminal.getvalue() == "\x1b[1mn\x1b[0m\n-\n1\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "red") == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert paint("x", "red") == "x"


def test_print_table_writes_to_standard_output(capsys):
    print_table([("a", 1)], ["key", "n"])
    assert capsys.readouterr().out == "key  n\n---  -\na    1\n"
