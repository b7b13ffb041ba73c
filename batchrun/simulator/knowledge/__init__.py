"""What the simulator knows of the prompts that it is asked."""
