"""`python -m mailstrom_async`, and the command mailstrom-async."""

import sys


def main() -> None:
    """Run the command line; says what to install if its libraries are missing."""
    try:
        from mailstrom_async._cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"the command line needs {error.name}: pip install 'mailstrom-async[cli]'")
    run()


if __name__ == "__main__":
    main()
