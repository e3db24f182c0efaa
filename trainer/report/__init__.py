"""Plots and one self-contained HTML page from run folders."""
