"""Rows in the shapes of other APIs and of public datasets, converted to Responses requests."""
