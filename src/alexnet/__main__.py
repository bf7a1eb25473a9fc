"""`python -m alexnet`, and what torchrun starts."""

from alexnet.cli import main

if __name__ == "__main__":
    main()
