"""How good a generator is: classifiers, protocols, inception score, Fréchet distances, GAM."""
