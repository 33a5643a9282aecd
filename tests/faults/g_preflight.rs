//! What preflight passes, `run` and `backup` take, and the other way round.
