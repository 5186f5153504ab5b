"""Sets of judging data as they are published: a row in, examples out."""
