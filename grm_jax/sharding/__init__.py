"""Device mesh, logical-axis rules, start of several processes, chip data."""
