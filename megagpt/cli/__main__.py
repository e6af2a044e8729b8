"""`python -m megagpt.cli`: the command where there is no script to call, as for torchrun and in a container."""

from megagpt.cli import main

if __name__ == "__main__":
    main()
