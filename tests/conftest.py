"""What the tests share: the backend is chosen before anything imports Keras."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# Keras' own default is tensorflow, whatever is installed; a run for another backend sets the variable.
os.environ.setdefault("KERAS_BACKEND", "torch")
# TensorFlow greets on stderr, where the tests look for messages of their own.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# A shell ignores SIGINT in what it runs in the background, and children inherit that: tests that send it would wait.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something of the machine; what made it fail can be run again.
settings.register_profile("shiftvit", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("shiftvit")
