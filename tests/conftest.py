"""Settings of the whole suite: one thread a process, no deadlines, and Ctrl-C that is heard."""

import signal

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("suite")

# A shell starts background jobs with SIGINT ignored, and our children inherit that: tests of Ctrl-C
# would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
