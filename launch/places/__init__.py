"""Places that a recipe runs at: a file each, with its site file's fields beside what it does."""
