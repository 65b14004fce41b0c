"""The command line: `shiftvit`, or `python -m shiftvit`."""

import sys


def main() -> None:
    """Runs the command line. Ctrl-C ends it in one line even while its modules are loaded."""
    try:
        from shiftvit.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("shiftvit: interrupted\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
