"""``python -m embedtune``: the command line."""

from embedtune.cli.app import main

if __name__ == "__main__":
    main()
