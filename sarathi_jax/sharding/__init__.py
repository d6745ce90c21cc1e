"""Device meshes, and the tables that say which logical axis of a parameter is cut over which mesh axis."""
