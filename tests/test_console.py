"""The progress bar appears only on terminals, shows the time left, and obeys NO_COLOR."""

from __future__ import annotations

import re
import sys

import pytest

from shiftvit import errors
from shiftvit.console import Bar

Patch, Captured = pytest.MonkeyPatch, pytest.CaptureFixture[str]


def simulate_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes standard error look like a terminal of 80 columns. No fixture: pytest would replace the patched stream."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def strip_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_bar_shows_progress_and_time_left(monkeypatch: Patch, capsys: Captured) -> None:
    simulate_terminal(monkeypatch)
    with Bar("decoding [b]", 4_000, done=1_000) as bar:
        assert bar.columns == 80
        print("a result")
        bar.advance(1_500)
        bar.print("[red]a line[/red] " + 12 * "long enough ")
    printed = capsys.readouterr()
    assert printed.out == "a result\n"
    shown = strip_escapes(printed.err)
    assert "decoding [b]" in shown
    assert "2,500/4,000" in shown
    assert "left" in shown
    assert "[red]a line[/red] " + 12 * "long enough " in shown.replace("\n", " ")
    assert max(len(line) for line in re.split(r"[\r\n]+", shown) if "left" in line) <= 80
    assert bar.columns == 0


def test_bar_shows_new_state_and_name(monkeypatch: Patch, capsys: Captured) -> None:
    simulate_terminal(monkeypatch)
    with Bar("epoch 1/2", 10) as bar:
        bar.update(5, "loss 1.234  top-1 12.3%  12,345 images/s", "epoch 2/2")
    shown = strip_escapes(capsys.readouterr().err)
    assert re.search(r"epoch 2/2 .* loss 1\.234  top-1 12\.3%  12,345 images/s .*left", shown)


def test_bar_counts_bytes_in_units_of_size(monkeypatch: Patch, capsys: Captured) -> None:
    simulate_terminal(monkeypatch)
    for total in (100_000, 0):
        with Bar("downloading", total, size=True) as bar:
            bar.advance(50_000)
    assert "50.0/100.0 kB" in strip_escapes(capsys.readouterr().err)


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_turns_colours_off(monkeypatch: Patch, capsys: Captured, no_color: bool) -> None:
    simulate_terminal(monkeypatch)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    with Bar("work", 2) as bar:
        bar.advance()
    colours = re.findall(r"\x1b\[(?:\d+;)*[349][0-8](?:;\d+)*m", capsys.readouterr().err)
    assert bool(colours) != no_color


def test_no_bar_without_terminal(monkeypatch: Patch, capsys: Captured) -> None:
    with Bar("work", 2) as bar:
        bar.advance(2)
        assert capsys.readouterr().err == ""
        bar.print("a line")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Bar("work", 2, shown=False) as bar:
        bar.update(1, "state")
    answer = capsys.readouterr()
    assert (answer.out, answer.err) == ("", "a line\n")


def test_quiet_process_prints_only_faults(monkeypatch: Patch, capsys: Captured) -> None:
    simulate_terminal(monkeypatch)
    monkeypatch.setattr(errors, "_QUIET", True)
    with Bar("decoding", 4_000) as bar:
        bar.advance(1_500)
        bar.print("a line")
        errors.notice("a notice")
    assert capsys.readouterr().err == ""
    errors.complain("a fault of this process")
    assert capsys.readouterr().err == "shiftvit: a fault of this process\n"
