"""`python -m megagpt.cli`: the command for places without the installed script, such as torchrun and containers."""

from megagpt.cli import main

if __name__ == "__main__":
    main()
