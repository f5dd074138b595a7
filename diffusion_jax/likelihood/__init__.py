"""How probable images are under a model: the variational bound and what it is made of."""
