"""Money: what runs cost, and at which prices; the entry points are `cost` and `price_tables`."""
