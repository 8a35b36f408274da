def report(options):
    raise SystemExit("none")
