"""How a run is doing: counted, shown and read."""
