"""What a run will cost before it is sent; the door is `estimates.py`."""
