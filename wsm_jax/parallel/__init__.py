"""Where arrays live: the mesh, sharding rules, several processes, chips."""
