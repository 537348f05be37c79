"""The program: ``lifedeploy``, and ``python -m lifedeploy``."""

from __future__ import annotations

import sys

# ``python -m`` puts the current folder first on the path, where somebody else's numpy.py may lie. The package itself
# has been found by now.
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

try:
    from lifedeploy.cli import interrupts
except KeyboardInterrupt:  # nothing has begun
    raise SystemExit(1) from None


def main() -> None:
    """Run the command line. Signals are looked after before anything else is loaded, which takes a moment too."""
    with interrupts.as_ctrl_c():
        try:
            from lifedeploy.cli import app
        except KeyboardInterrupt:
            sys.stderr.write(f"error: {interrupts.SAID}\n")
            sys.exit(1)
        app.main()


if __name__ == "__main__":
    main()
