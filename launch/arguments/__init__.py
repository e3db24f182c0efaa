"""Arguments of the commands: argparse alone, so that `laconic --help` answers at once."""
