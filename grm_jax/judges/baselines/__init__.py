"""Judges that the GRM is compared with."""
