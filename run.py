"""Train one configuration, or with -m a grid of them: see python run.py --help."""

from resnests.run import main

if __name__ == "__main__":
    main()
