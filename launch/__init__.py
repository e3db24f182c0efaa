"""Where people and machines come in: command line, processes, placement."""
