"""The limits on time fail where they should, and signals reach what the tests start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pace import at_most, child_seconds, unit


def spend(seconds):
    import time

    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def test_a_limit_is_in_processor_time_of_this_machine():
    with at_most(1):
        pass
    with at_most(4):
        spend(2 * unit())
    with pytest.raises(AssertionError, match="1 units are"), at_most(1):
        spend(2 * unit())


def test_the_time_of_children_is_theirs():
    program = "import time\nwhile time.process_time() < 0.3: pass"
    seconds = child_seconds(lambda: subprocess.run([sys.executable, "-c", program], check=True), repeats=1)
    assert 0.3 <= seconds < 1


def test_children_take_ctrl_c_where_the_shell_ignores_it():
    show = "import signal; print(signal.getsignal(signal.SIGINT))"
    program = f"import conftest, subprocess, sys; subprocess.run([sys.executable, '-c', {show!r}], check=True)"
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert "default_int_handler" in ran.stdout
