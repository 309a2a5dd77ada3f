"""The entry point of `python -m distft`."""

from distft.cli import main

if __name__ == "__main__":
    main()
