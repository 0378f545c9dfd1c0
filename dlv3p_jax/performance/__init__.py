"""How fast this is: measured here, or planned for a TPU slice that is not here."""
