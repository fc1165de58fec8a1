"""How several engines take turns on one machine, and what is made of their times."""
