"""Show the auditor what wrong claims look like: exhibits, and two honest claims beside them."""
