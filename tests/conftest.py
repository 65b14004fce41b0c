"""What the tests share: the backend is chosen before anything imports Keras."""

from __future__ import annotations

import os
import signal

# Keras' own default is tensorflow, whatever is installed; a run for another backend sets the variable.
os.environ.setdefault("KERAS_BACKEND", "torch")
# TensorFlow greets on stderr, where the tests look for messages of their own.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# A shell ignores SIGINT in what it runs in the background, and children inherit that: tests that send it would wait.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
