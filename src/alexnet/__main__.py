"""Entry point of `python -m alexnet` and `torchrun -m alexnet`."""

from alexnet.cli import main

if __name__ == "__main__":
    main()
