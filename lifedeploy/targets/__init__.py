"""Which model, on which engine, how it is asked, and what is proven of it: one answer for every verb."""
