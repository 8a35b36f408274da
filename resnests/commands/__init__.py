"""What aggregate.py does beside tables and figures. Nothing else imports it."""
