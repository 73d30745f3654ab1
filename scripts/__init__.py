"""Command-line entry points: thin, with their logic in `models`."""

from pkgutil import extend_path

# tt-metal has a folder of this name too: what is not found here is looked for there (see `mochi_tt.packages`).
__path__ = extend_path(__path__, __name__)
