"""Files that are not on this machine: objects of stores, and data sets of the Hub."""
