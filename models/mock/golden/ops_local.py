"""Golden rules of per-device ops for which ttnn has no golden function, or one that is not what the kernel does."""

import torch

from models.mock.golden.rules import local_rule
