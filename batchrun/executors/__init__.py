"""Where requests run. Today on this machine: `local`."""
