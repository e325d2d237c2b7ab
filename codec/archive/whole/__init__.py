"""Deal with whole archives: join several, restore what a damaged one still holds."""
