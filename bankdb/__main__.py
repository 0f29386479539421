"""`python -m bankdb` is the command `bank`, also where the folder of its script is not on the path."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    # Here alone does the bank know of its command line, and not before it is asked for.
    from cli.main import main as bank

    bank()


if __name__ == "__main__":
    main()
