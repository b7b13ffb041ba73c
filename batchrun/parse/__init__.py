"""Bodies to nouns, pure and total over any JSON. The door is `response`."""
