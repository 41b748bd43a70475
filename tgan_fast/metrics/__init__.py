"""Scores of generators: inception score, Fréchet distances, GAM, and the classifiers and protocols behind them."""
