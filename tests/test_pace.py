"""The time limits of tests fail when they should, and signals reach the processes that tests start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pace import limit_time, measure_child, measure_unit


def spend_processor_time(seconds):
    import time

    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def test_limit_time_measures_processor_time():
    with limit_time(1):
        pass
    with limit_time(4):
        spend_processor_time(2 * measure_unit())
    with pytest.raises(AssertionError, match="1 units are"), limit_time(1):
        spend_processor_time(2 * measure_unit())


def test_measure_child():
    program = "import time\nwhile time.process_time() < 0.3: pass"
    seconds = measure_child(lambda: subprocess.run([sys.executable, "-c", program], check=True), repeats=1)
    assert 0.3 <= seconds < 1


def test_children_receive_sigint_if_the_shell_ignores_it():
    show = "import signal; print(signal.getsignal(signal.SIGINT))"
    program = f"import conftest, subprocess, sys; subprocess.run([sys.executable, '-c', {show!r}], check=True)"
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", program]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert "default_int_handler" in done.stdout
