"""Several processes as one engine, from the host's side: who is in the group, the authenticated links between them, and what happens when one is lost."""
