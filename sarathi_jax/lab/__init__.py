"""The sharding lab: programs compiled for meshes that nobody has, and what can be read off them."""
