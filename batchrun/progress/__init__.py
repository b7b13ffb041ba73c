"""How a run stands: counted, shown and read. Changes nothing."""
