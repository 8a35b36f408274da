"""Tables, figures and a report from finished runs: see python aggregate.py --help."""

from resnests.aggregate import main

if __name__ == "__main__":
    main()
