"""Do what aggregate.py offers beside tables and figures. Nothing else imports it."""
