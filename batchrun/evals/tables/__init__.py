"""What scores add up to as people read it: tables, and the part of a page."""
