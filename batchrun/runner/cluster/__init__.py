"""A run whose requests are sent by workers: processes of their own, perhaps on other machines."""
