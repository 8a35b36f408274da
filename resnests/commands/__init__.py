"""Do what aggregate.py does beside tables and figures. Nothing else imports this package."""
