"""What tokens cost; pure. The door is `prices.py`."""
