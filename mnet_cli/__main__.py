"""`python -m mnet_cli` runs the same program as `mnet`."""

from mnet_cli.cli import main

if __name__ == "__main__":
    main()
