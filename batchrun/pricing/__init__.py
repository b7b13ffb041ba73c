"""What tokens cost. No I/O."""
