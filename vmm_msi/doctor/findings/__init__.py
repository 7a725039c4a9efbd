"""A page for each finding of the doctor, by its id."""
